"""slurm/rank.sh, which stands between srun and each rank: what it makes of how the rank ended."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import PROJECT


def end_of(folder: Path, command: str, **environment: str) -> tuple[int, set[str]]:
    """The status of rank.sh around a shell's command, and the files that say how it ended."""
    done = subprocess.run(
        ["bash", str(PROJECT / "slurm" / "rank.sh"), str(folder / "ended"), "sh", "-c", command],
        env={"PATH": "/usr/bin:/bin", **environment},
        timeout=300,
        check=False,
    )
    return done.returncode, {path.name for path in folder.iterdir() if path.name.startswith("ended")}


@pytest.mark.parametrize(
    ("status", "found"),
    [(0, (0, set())), (75, (0, {"ended.75"})), (4, (0, {"ended.4"})), (2, (2, {"ended.2"})), (9, (9, set()))],
)
def test_how_a_rank_ended_is_left_as_a_file(tmp_path: Path, status: int, found: tuple[int, set[str]]) -> None:
    assert end_of(tmp_path, f"exit {status}") == found


def test_bad_nodes_that_only_a_bad_node_sees_end_well(tmp_path: Path) -> None:
    nowhere = tmp_path / "absent"
    for rank, status in (("1", 0), ("0", 4)):  # rank 0 is on the node of job.sh
        done = subprocess.run(
            ["bash", str(PROJECT / "slurm" / "rank.sh"), str(nowhere / "ended"), "sh", "-c", "exit 4"],
            env={"PATH": "/usr/bin:/bin", "SLURM_PROCID": rank},
            timeout=300,
            check=False,
        )
        assert done.returncode == status


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_before_the_command_is_there_is_answered(tmp_path: Path, name: str) -> None:
    """The other ranks may have stopped for it already: a rank that began now would wait for them in vain."""
    early = tmp_path / "early.sh"  # the signal comes as soon as the shell can answer it
    early.write_text(f'trap() {{ builtin trap "$@"; kill -{name} $$; }}\n', encoding="utf-8")
    assert end_of(tmp_path, f"touch {tmp_path}/begun", BASH_ENV=str(early)) == (0, {"ended.75"})
    assert not (tmp_path / "begun").exists()


def test_a_signal_while_the_command_is_at_work_is_the_command_s_to_answer(tmp_path: Path) -> None:
    answered = "trap 'exit 75' USR1; kill -USR1 $PPID; kill -USR1 $$; sleep 200"
    assert end_of(tmp_path, answered) == (0, {"ended.75"})
    (tmp_path / "ended.75").unlink()
    assert end_of(tmp_path, "kill -USR1 $PPID; exit 0") == (0, set())

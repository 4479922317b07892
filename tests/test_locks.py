"""Who owns a stage: two commands at once, ghosts that wake up, leases that go stale, clocks that are wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command import PROJECT, clean_environment

from pipeline import locks, owner
from pipeline.errors import EnvironmentFault, Fenced
from pipeline.locks import hold
from pipeline.owner import Fence, Follower, Identity, Lease, Owner, is_ready, read_lease
from pipeline.train.hang_report import process_state

# Holds a stage; then writes a line a moment while it may, as a stage does: through the fence. One that `freezes` stops
# itself where it has not asked the fence a moment ago: what it was allowed then it would still write when it goes on.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from pipeline import owner
from pipeline.errors import Fenced
from pipeline.locks import hold
from pipeline.progress import start_logging
folder, stage, grace, asks = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] != "works"
freezes = sys.argv[4] == "freezes"
owner.RENEW, owner.GRACE = 0.2, grace
start_logging()
try:
    with hold(folder, stage) as fence:
        print("held", flush=True)
        while True:
            if asks:
                fence.check(within=1.0)
                with open(folder / "written", "a") as file:
                    file.write(f"{time.time()}\\n")
            if freezes:
                freezes = False
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.02)
except Fenced as fenced:
    print(fenced, file=sys.stderr)
    sys.exit(Fenced.status)
"""


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(owner, "RENEW", 0.1)
    monkeypatch.setattr(owner, "GRACE", 300.0)  # after that a fence's thread ends this very process


def start(folder: Path, stage: str = "pretrain", grace: float = 60.0, does: str = "asks", **slurm: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), stage, str(grace), does],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=clean_environment(**slurm),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.stderr
    return process


def plant(folder: Path, stage: str = "pretrain", **changes: Any) -> Lease:
    """The lease of a holder on another machine that said nothing when it left."""
    who = {"host": "node3", "pid": 12, "boot": "another machine", **changes.pop("who", {})}
    lease = Lease(7, "a nonce", Identity(**who), renewals=40, **changes)
    owner.lease_path(folder, stage).write_bytes(lease.encode())
    return lease


def test_a_stage_has_one_maker_and_many_readers(tmp_path: Path) -> None:
    with hold(tmp_path, "tokenize", ("shard",)):
        with hold(tmp_path, "pretrain", ("shard",), patience=0):
            pass
        with pytest.raises(EnvironmentFault, match="tokenize: another command"), hold(tmp_path, "tokenize", patience=0):
            pass
        with pytest.raises(EnvironmentFault, match="shard: another command"), hold(tmp_path, "shard", patience=0):
            pass
    with hold(tmp_path, "shard", patience=0):
        pass


def test_the_second_command_loses_with_a_line_that_names_the_first(tmp_path: Path) -> None:
    first = start(tmp_path, SLURM_JOB_ID="17", SLURM_RESTART_COUNT="2")
    try:
        said = rf"pretrain: another command is working on it \(job 17, restart 2, process {first.pid} on "
        with pytest.raises(EnvironmentFault, match=said), hold(tmp_path, "pretrain", patience=0.5):
            pass
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    with hold(tmp_path, "pretrain", patience=0):  # a dead holder on this machine is not waited for
        pass


def test_a_ghost_that_wakes_up_ends_and_has_written_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = start(tmp_path, does="freezes", SLURM_JOB_ID="17", SLURM_CLUSTER_NAME="c")
    while process_state(ghost.pid) != "T":
        assert ghost.poll() is None
        time.sleep(0.05)
    try:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with hold(tmp_path, "pretrain", patience=0) as fence:  # at once: a later start of the same job
            assert fence.after_a_ghost
            before = (tmp_path / "written").read_text(encoding="utf-8")
            time.sleep(1.1)  # no answer of the fence is so fresh that it still counts
            ghost.send_signal(signal.SIGCONT)
            said = ghost.communicate(timeout=300)[1]
            assert ghost.returncode == Fenced.status == 2
            assert f"another command (job 17, restart 1, process {os.getpid()} on " in said
            assert f"has taken over {tmp_path.parent}; this one ends" in said
            assert (tmp_path / "written").read_text(encoding="utf-8") == before
            fence.check()
            time.sleep(0.3)
            fence.check()  # and its lease was not touched either
    finally:
        ghost.kill()
        ghost.wait()


def test_a_ghost_that_never_asks_is_ended_by_its_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = start(tmp_path, grace=0.2, does="works", SLURM_JOB_ID="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path, "pretrain"):
        assert "has taken over" in ghost.communicate(timeout=300)[1]
    assert ghost.returncode == 2


def test_an_earlier_start_of_the_same_job_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    plant(tmp_path, released=True, who={"job": "17", "restart": 1})
    with (
        pytest.raises(Fenced, match=r"job 17, restart 1, process 12 on node3 has taken over"),
        hold(tmp_path, "pretrain"),
    ):
        pass


@pytest.mark.parametrize("renewed", [0.0, 4e9])
def test_a_silent_holder_elsewhere_is_a_ghost_after_a_while_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, renewed: float
) -> None:
    monkeypatch.setattr(locks, "STALE", 1.0)
    plant(tmp_path, renewed=renewed)
    began = time.monotonic()
    with caplog.at_level("INFO", "pipeline"), hold(tmp_path, "pretrain", patience=0) as fence:
        assert time.monotonic() - began >= 1.0
        assert fence.after_a_ghost
        lease = read_lease(tmp_path, "pretrain")
        assert lease is not None and lease.token == 8
    assert "held by process 12 on node3; taken over in" in caplog.text
    assert "taken over from process 12 on node3, without a sign of life" in caplog.text


def test_a_holder_elsewhere_that_renews_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE", 1.0)
    lease = plant(tmp_path)

    def renewed(folder: Path, stage: str) -> Lease | None:
        lease.renewals += 1  # a sign of life before each look, however slow this machine is
        owner.lease_path(folder, stage).write_bytes(lease.encode())
        return read_lease(folder, stage)

    monkeypatch.setattr(locks, "read_lease", renewed)
    with pytest.raises(EnvironmentFault, match="process 12 on node3"), hold(tmp_path, "pretrain", patience=1.5):
        pass


def test_a_holder_elsewhere_that_ended_in_order_is_not_waited_for(tmp_path: Path) -> None:
    plant(tmp_path, released=True)
    with hold(tmp_path, "pretrain", patience=0) as fence:
        assert not fence.after_a_ghost


def test_a_reader_passes_a_ghost_too_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE", 0.5)
    plant(tmp_path, "tokenize")
    with hold(tmp_path, "pretrain", ("tokenize",)):
        lease = read_lease(tmp_path, "tokenize")
        assert lease is not None and (lease.nonce, lease.released) != ("a nonce", False)


def test_readers_are_not_broken_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with hold(tmp_path, "tokenize"):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with (
        hold(tmp_path, "pretrain", ("tokenize",)),
        pytest.raises(EnvironmentFault, match="tokenize: another command is reading or making it"),
        hold(tmp_path, "tokenize", patience=0.2),
    ):
        pass


def test_where_there_are_no_locks_the_lease_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        hold(tmp_path, "pretrain"),
        pytest.raises(EnvironmentFault, match=f"process {os.getpid()}"),
        hold(tmp_path, "pretrain", patience=0.5),
    ):
        pass
    with hold(tmp_path, "pretrain", patience=0):
        pass


def test_what_fails_under_a_ghost_is_told_as_the_takeover(tmp_path: Path) -> None:
    with pytest.raises(Fenced, match="has taken over") as failed, hold(tmp_path, "pretrain"):
        Owner.write(tmp_path, "pretrain", Identity("node3", 12, "x"), None)
        raise FileNotFoundError("a file that the new owner has deleted")
    assert isinstance(failed.value.__context__, FileNotFoundError)


def test_a_deleted_run_is_told(tmp_path: Path) -> None:
    said = r"pretrain\.owner\.json is gone: the run was deleted or moved"
    with pytest.raises(Fenced, match=said), hold(tmp_path, "pretrain") as fence:
        owner.lease_path(tmp_path, "pretrain").unlink()
        fence.check()


def test_other_ranks_follow_the_owner_of_their_launch(tmp_path: Path) -> None:
    with hold(tmp_path, "pretrain", launch="srun 17 start 0") as fence:
        assert not is_ready(tmp_path, "pretrain", "srun 17 start 0", "key")
        fence.ready("key")
        assert is_ready(tmp_path, "pretrain", "srun 17 start 0", "key")
        assert not is_ready(tmp_path, "pretrain", "srun 17 start 0", "other key")
        assert not is_ready(tmp_path, "pretrain", "srun 17 start 1", "key")
    with Follower(tmp_path, "pretrain", "srun 17 start 0") as follower:
        follower.check()
    with hold(tmp_path, "pretrain", launch="srun 17 start 1"), pytest.raises(Fenced, match="has taken over"):
        follower.check()


def test_a_damaged_lease_is_told_and_the_lock_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    owner.lease_path(tmp_path, "pretrain").write_text("{", encoding="utf-8")
    with caplog.at_level("WARNING", "pipeline"), hold(tmp_path, "pretrain") as fence:
        fence.check()
    assert "pretrain.owner.json: damaged" in caplog.text


def test_a_lease_is_renewed_in_place(tmp_path: Path) -> None:
    path = owner.lease_path(tmp_path, "pretrain")
    with hold(tmp_path, "pretrain"):
        first, inode = json.loads(path.read_text(encoding="utf-8")), path.stat().st_ino
        deadline = time.monotonic() + 300
        while (later := read_lease(tmp_path, "pretrain")) is None or later.renewals < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert later.nonce == first["nonce"] and not later.released
        assert (path.stat().st_ino, path.stat().st_size) == (inode, owner.SIZE)
    assert json.loads(path.read_text(encoding="utf-8"))["released"]


def test_a_long_wait_for_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "TELLS", 0.1)
    monkeypatch.setattr(locks.log, "propagate", True)
    path = tmp_path / "lock"
    with open(path, "ab") as first, open(path, "ab") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        waits = threading.Thread(target=locks.wait_for_file, args=(second.fileno(), path, "a shard"), daemon=True)
        waits.start()
        deadline = time.monotonic() + 300
        while not caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert f"a shard: waits for another process, which holds {path}" in caplog.text
        assert waits.is_alive()
        fcntl.flock(first, fcntl.LOCK_UN)
        waits.join(300)
        assert not waits.is_alive()
        with pytest.raises(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_default_fence_is_always_open() -> None:
    Fence().check()

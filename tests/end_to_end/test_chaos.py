"""tools/chaos, in short: a few kills, a table, the same bytes; and that it finds what differs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command import PROJECT, clean_environment
from processes import run_to_end

CHAOS = PROJECT / "tools" / "chaos.py"


def chaos(*words: str | Path) -> CompletedProcess[str]:
    return run_to_end([sys.executable, CHAOS, *words], cwd=PROJECT, env=clean_environment())


def test_a_training_that_is_killed_five_times_comes_out_the_same(tmp_path: Path) -> None:
    done = chaos("--kills", "5", "--cold", "4", "--workdir", tmp_path / "chaos", "pretrain.tokens=27_648")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "5 kills, " in done.stdout
    assert "bytes and losses are the same to the last bit" in done.stdout
    kills = [json.loads(line) for line in (tmp_path / "chaos" / "kills.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kills) == 5
    assert {kill["start"] for kill in kills} == {"forked", "command"}


def test_a_stage_that_is_not_there_and_a_folder_that_is_full_are_a_line(tmp_path: Path) -> None:
    wrong = chaos("--stages", "pretain", "--workdir", tmp_path / "new")
    assert wrong.returncode == 2
    assert "no stage 'pretain'" in wrong.stderr
    (tmp_path / "file").touch()
    full = chaos("--workdir", tmp_path)
    assert full.returncode == 2
    assert "is not empty" in full.stderr


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(PROJECT / "tools"))
    import chaos_compare

    return chaos_compare


@pytest.mark.parametrize("harm", ["none", "a loss", "a step twice", "a step lost", "an event", "a step back", "litter"])
def test_what_is_different_is_found(tmp_path: Path, compare: object, harm: str) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    records = [{"step": step, "loss": 6.5 - step / 7} for step in range(4)] + [{"step": 4, "validation": {"loss": 6.0}}]
    (straight / "losses.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    history = [{"kind": "start", "step": 0}, {"kind": "saved", "step": 2}, {"kind": "resumed", "step": 2}]
    (straight / "audit.jsonl").write_text("".join(json.dumps(event) + "\n" for event in history), encoding="utf-8")
    shutil.copytree(straight, killed)
    losses, events = killed / "losses.jsonl", killed / "audit.jsonl"
    lines = losses.read_text(encoding="utf-8").splitlines(keepends=True)
    if harm == "a loss":
        lines[0] = json.dumps({"step": 0, "loss": 6.500000000000001}) + "\n"
    elif harm == "a step twice":
        lines.insert(1, lines[0])
    elif harm == "a step lost":
        del lines[0]
    losses.write_text("".join(lines), encoding="utf-8")
    told = {"an event": {"kind": "skipped", "step": 3}, "a step back": {"kind": "resumed", "step": 1}}
    if harm in told:
        with open(events, "a", encoding="utf-8") as more:
            more.write(json.dumps(told[harm]) + "\n")
    if harm == "litter":
        (killed / "step-000000003.x.tmp").mkdir()
    found, _ = compare.trainings(straight, killed, True)  # type: ignore[attr-defined]
    assert bool(found) == (harm != "none"), found

"""A disk that fills up while a checkpoint is being written: a real one, and what a person reads.

The other planted faults have their tests where they belong: loss_policy (NaN gradient, spike), watchdog (rank asleep,
stopped, dead), checkpoints (truncated, flipped), pretrain (deleted shard), locks (two jobs), time_limit (clock set).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny_task import TinyTask, run

from pipeline.errors import EnvironmentFault
from pipeline.train import checkpoints
from pipeline.train.audit import events
from pipeline.train.checkpoint_files import describe, every
from pipeline.train.task import Batch

FULL = r"step-0000000\d\d.*: the disk is full; free some space \(or set workdir=… to a larger disk\)"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


class Neighbour(TinyTask):
    """Somebody else's file leaves 100 kB of the disk once the checkpoint of step 6 is there."""

    def __init__(self, file: Path, folder: Path) -> None:
        super().__init__(12)
        self.file, self.good = file, folder / "step-000000006"

    def batch(self, sequences: Sequence[int]) -> Batch:
        if sequences[0] == 7 * self.sequences:  # made ready ahead of its step, perhaps before that save
            deadline = time.monotonic() + 300
            while not self.good.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            found = os.statvfs(self.file.parent)
            self.file.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - 100_000)))
        return super().batch(sequences)


def test_a_disk_that_fills_up_in_a_save_is_told_and_nothing_is_lost(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = run(tmp_path / "unbroken", TinyTask(12), checkpoint_steps=3)
    monkeypatch.setattr(checkpoints, "SPARE", -(10**12))  # the look at the free space comes a moment too early
    folder, neighbour = small_disk / "run", small_disk / "neighbour"
    with pytest.raises(EnvironmentFault, match=FULL):
        run(folder, Neighbour(neighbour, folder), checkpoint_steps=3)
    assert "checkpoint of step 9 is not saved: " in caplog.text
    assert [path.name for path in every(folder)][-1] == "step-000000006"
    assert describe(every(folder)[-1]).step == 6
    assert not list(folder.glob("*.tmp"))
    neighbour.unlink()
    assert run(folder, TinyTask(12), checkpoint_steps=3).losses == unbroken.losses
    assert {"save_failed", "resumed"} <= {event["kind"] for event in events(folder)}

"""Several real ranks on this machine, started by our own launcher: equal losses, and whatever may happen to a rank."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import run_to_end
from tiny_task import STALLED, run

from pipeline.train.checkpoint_files import latest

TASK = Path(__file__).with_name("tiny_task.py")
LAUNCH = "from pipeline.cluster import launch; from pipeline.progress import start_logging; import sys; "
LAUNCH += "start_logging(); launch.GRACE = 300.0; sys.exit(launch.launch_command(sys.argv[2:], int(sys.argv[1])))"


def command(ranks: int, *trainings: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", LAUNCH, str(ranks), sys.executable, str(TASK), json.dumps(trainings)]


def launch(ranks: int, *trainings: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run trainings, one after the other, on so many ranks."""
    return run_to_end(command(ranks, *trainings), env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return [math.nan if record["loss"] is None else record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks: ZeRO 1, 2, 3 in fp32, ZeRO 1 in bf16 with Muon, with no compiler on PATH."""
    folder = tmp_path_factory.mktemp("together")
    tools = folder / "bin"
    tools.mkdir()
    muon = {"precision": "bf16", "optimizer": {"name": "muon", "learning_rate": 1e-2}}
    ended = launch(
        2,
        *({"folder": str(folder / name), "settings": {"deepspeed": name}} for name in ("zero1", "zero2", "zero3")),
        {"folder": str(folder / "muon"), "settings": muon},
        PATH=str(tools),
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def test_two_ranks_agree_with_one(together: Path, tmp_path: Path) -> None:
    assert losses(together / "zero1") == pytest.approx(run(tmp_path).losses, rel=1e-5)


def test_zero_stages_agree_on_two_ranks(together: Path) -> None:
    for name in ("zero2", "zero3"):
        assert losses(together / name) == pytest.approx(losses(together / "zero1"), rel=1e-5)


def test_muon_learns_on_two_ranks(together: Path) -> None:
    found = losses(together / "muon")
    assert found[-1] < found[0]


def test_killed_stopped_and_resumed_losses_are_bit_equal(together: Path, tmp_path: Path) -> None:
    training = {"folder": str(tmp_path)}
    killed = launch(2, {**training, "accident": [1, 4, "SIGKILL"], "awaits": "step-000000003"})
    assert killed.returncode == 128 + signal.SIGKILL
    assert "rank 1 was ended by SIGKILL" in killed.stderr
    stopped = launch(2, {**training, "accident": [1, 5, "SIGTERM"]})
    assert stopped.returncode == 75, stopped.stderr
    assert "continues after step 3 of 8" in stopped.stderr
    assert "stopped after step 6 of 8" in stopped.stderr
    resumed = launch(2, training)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path) == losses(together / "zero1")


def test_killed_with_its_launcher_in_the_middle_of_a_save(together: Path, tmp_path: Path) -> None:
    training = {"folder": str(tmp_path), "settings": {"checkpoint_steps": 1}}
    stalls = command(2, {**training, "accident": [1, 4, "stalled_disk"]})  # so that a save surely is at work
    started = subprocess.Popen(stalls, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(f"*-{STALLED}")):  # any other save may be over in the next moment
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.01)
    ranks = psutil.Process(started.pid).children(recursive=True)
    started.kill()  # its ranks must die with it, or they would go on writing
    started.wait()
    assert len(ranks) >= 2
    assert psutil.wait_procs(ranks, timeout=120)[1] == []
    assert list(tmp_path.glob("step-*.tmp"))
    assert latest(tmp_path) is not None
    resumed = launch(2, training)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path) == losses(together / "zero1")
    assert not list(tmp_path.glob("*.tmp"))

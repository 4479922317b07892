"""The same stage under other launchers: equal losses to the command's own start of two ranks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, Pipeline, clean_environment

from pipeline import manifest as manifests

PROGRAMS = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": [str(PROGRAMS / "deepspeed"), "--num_gpus", "2", "--no_local_rank", "--module", "pipeline"],
    "torchrun": [str(PROGRAMS / "torchrun"), "--nproc-per-node", "2", "-m", "pipeline"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_trains_the_same_model(tiny_copy: Path, tiny_recipe: Path, launcher: str) -> None:
    straight = manifests.load(tiny_copy / "checkpoints")
    shutil.rmtree(tiny_copy / "checkpoints")
    done = subprocess.run(
        [*LAUNCHERS[launcher], "pretrain", str(tiny_recipe), f"workdir={tiny_copy}"],
        cwd=PROJECT,
        # One thread a rank, as the command's own launch gives on two cores: sums are then made in the same order.
        env=clean_environment(OMP_NUM_THREADS="1", PATH=f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = manifests.load(tiny_copy / "checkpoints")
    assert made.key == straight.key
    for name in (name for name in straight.metrics if "loss" in name):
        assert made.metrics[name] == pytest.approx(straight.metrics[name], rel=1e-3), name


def test_a_launcher_is_told_to_start_one_training_at_a_time(pipeline: Pipeline, tiny_recipe: Path) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    done = pipeline("finetune", tiny_recipe, environment=clean_environment(**ranks))
    assert done.returncode == 2
    assert "give --task, one of summarize, package" in done.stderr

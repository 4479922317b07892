"""The same stage under other launchers: the same losses, to the last bit, as under the command's own start of ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command import PROJECT, Pipeline, clean_environment
from processes import run_to_end

from pipeline import manifest as manifests
from pipeline.cluster.launch import environments, free_port
from pipeline.cluster.ranks import cores

PROGRAMS = Path(sys.executable).parent
RANKS = min(2, cores())  # as the tiny run was made
LAUNCHERS = {
    "deepspeed": [
        *(str(PROGRAMS / "deepspeed"), "--hostfile", "HOSTFILE", "--no_ssh_check", "--master_addr", "127.0.0.1"),
        *("--num_gpus", str(RANKS), "--master_port", "PORT", "--module", "pipeline"),
    ],
    "torchrun": [str(PROGRAMS / "torchrun"), "--nproc-per-node", str(RANKS), "--master-port", "PORT", "-m", "pipeline"],
    "mpirun": ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(RANKS), sys.executable, "-m", "pipeline"],
}


def losses(folder: Path) -> list[dict[str, object]]:
    """Every step's loss and every validation, as they were written."""
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_trains_the_same_model(tiny_copy: Path, tiny_recipe: Path, launcher: str) -> None:
    if shutil.which("mpirun") is None and launcher == "mpirun":
        pytest.skip("mpirun is not here (Debian's openmpi-bin)")
    straight, expected = manifests.load(tiny_copy / "checkpoints"), losses(tiny_copy / "checkpoints")
    shutil.rmtree(tiny_copy / "checkpoints")
    hostfile = tiny_copy.parent / "hostfile"
    hostfile.write_text(f"localhost slots={RANKS}\n", encoding="utf-8")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    given = {"HOSTFILE": str(hostfile), "PORT": str(free_port())}
    command = [given.get(word, word) for word in LAUNCHERS[launcher]]
    done = run_to_end(
        [*command, "pretrain", tiny_recipe, f"workdir={tiny_copy}"],
        cwd=PROJECT,
        # As many threads a rank as the command's own launch gives: sums are then made in the same order.
        env=clean_environment(
            OMP_NUM_THREADS=environments(RANKS, 0)[0]["OMP_NUM_THREADS"],
            PATH=f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
            **root,
        ),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = manifests.load(tiny_copy / "checkpoints")
    assert made.key == straight.key
    assert losses(tiny_copy / "checkpoints") == expected
    assert {name: value for name, value in made.metrics.items() if "loss" in name} == {
        name: value for name, value in straight.metrics.items() if "loss" in name
    }


def test_a_launcher_is_told_to_start_one_training_at_a_time(pipeline: Pipeline, tiny_recipe: Path) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    done = pipeline("finetune", tiny_recipe, environment=clean_environment(**ranks))
    assert done.returncode == 2
    assert "give --task, one of summarize, package" in done.stderr


def test_an_environment_that_contradicts_itself_is_one_line(pipeline: Pipeline, tiny_recipe: Path) -> None:
    inherited = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    done = pipeline("pretrain", tiny_recipe, environment=clean_environment(**inherited, **step))
    assert done.returncode == 2
    assert "deepspeed says rank 0 of 1, but srun, around it, rank 2 of 4" in done.stderr
    assert "Traceback" not in done.stderr

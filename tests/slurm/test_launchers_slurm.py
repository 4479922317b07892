"""One training on two nodes under each launcher: torchrun, deepspeed and mpirun give srun's losses to the last bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from command import PROJECT, TINY
from virtual_cluster import Cluster, Prepared

HEAD = r"""#!/usr/bin/env bash
set -euo pipefail
export OMP_NUM_THREADS=1 PATH=PROGRAMS:$PATH
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export MASTER_ADDR
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots=1/' >hostfile
train() { echo "pretrain TINY workdir=$PWD/$1 pretrain.tokens=4096 tracking.enabled=false"; }
"""
LAUNCHES = {
    "srun": "srun --ntasks-per-node=1 python -m pipeline $(train srun)",
    "torchrun": "srun --ntasks-per-node=1 torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-id=1 "
    "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT -m pipeline $(train torchrun)",
    # DeepSpeed starts a file, not a module, through srun; its ranks are srun's.
    "deepspeed": "deepspeed --hostfile hostfile --launcher slurm --no_ssh_check --master_addr $MASTER_ADDR "
    "$(command -v pipeline) $(train deepspeed)",
    "mpirun": "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --bind-to none -np 2 "
    "--map-by ppr:1:node -x MASTER_ADDR -x MASTER_PORT -x PATH -x OMP_NUM_THREADS python -m pipeline $(train mpirun)",
}


def test_every_launcher_gives_the_same_losses(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    names = [name for name in LAUNCHES if name != "mpirun" or shutil.which("mpirun")]
    script = tmp_path / "launch.sh"
    lines = [HEAD.replace("PROGRAMS", str(Path(sys.executable).parent)).replace("TINY", str(TINY))]
    for number, name in enumerate(names):
        prepared(tmp_path / name)
        lines.append(f"export MASTER_PORT={29600 + number} PYTHONPATH={PROJECT}\n{LAUNCHES[name]}\n")
    script.write_text("".join(lines), encoding="utf-8")
    job = cluster.submit(tmp_path / "job.log", "--nodes=2", "--ntasks-per-node=1", str(script))
    assert job.end() == "COMPLETED", job.said()[-4000:]
    told = {"srun": "2 ranks (srun)", "torchrun": "2 ranks (torchrun)", "mpirun": "2 ranks (mpirun)"}
    assert all(told[name] in job.said() for name in names if name in told)
    found = {name: (tmp_path / name / "checkpoints" / "losses.jsonl").read_text(encoding="utf-8") for name in names}
    assert len([line for line in found["srun"].splitlines() if "loss" in json.loads(line)]) == 4
    assert all(text == found["srun"] for text in found.values())

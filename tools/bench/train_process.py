"""What `train` runs in fresh processes: the measurement of matrix products, and a training with its ranks."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RANK = Path(__file__).with_name("train_rank.py")
_AGAIN = 4  # times that a product is measured: other work may disturb one


def peak(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Best speed of a large matrix product, FLOP/s, by type; all cores, or one GPU."""
    import torch

    from pipeline.cluster.device import find_device, matmul_peak
    from pipeline.cluster.ranks import ALONE

    device = find_device(ALONE)

    def work() -> dict[str, Any]:
        types = {"bf16": torch.bfloat16, "fp32": torch.float32}
        return {name: max(matmul_peak(device, one) for _ in range(_AGAIN)) for name, one in types.items()}

    return work


def training(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A case's ranks, as our launcher starts them. Its start counts: `first` is the time to the end of step one."""
    from pipeline.cluster.launch import launch_command

    ranks = settings["case"]["ranks"]
    for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:  # of the cores, each has its share
        os.environ[name] = str(max(1, int(os.environ[name]) // ranks))

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="bench-train-") as place:
            asked, told = Path(place, "asked.json"), Path(place, "told.json")
            asked.write_text(json.dumps({**settings, "folder": str(Path(place, "run"))}), encoding="utf-8")
            Path(place, "run").mkdir()
            began = time.time()
            if status := launch_command([sys.executable, str(_RANK), str(asked), str(told)], ranks):
                raise SystemExit(status)
            found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
        return found | {"first": found["first"] - began}

    return work

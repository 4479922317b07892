"""One rank of a training that `train` measures: train_rank.py ASKED.json TOLD.json."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from train_cases import Case
from train_clock import Clock

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.progress import start_logging

MODULES = {"ours": "train_ours", "torch": "train_torch", "torch-bf16": "train_torch", "trainer": "train_trainer"}


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    case, ranks = Case.read(asked["case"]), read_ranks() or ALONE
    start_logging()
    device = find_device(ranks)
    clock = Clock(device.torch_device, asked["seconds"], asked["warm"], asked["least"])
    importlib.import_module(MODULES[case.kind]).train(case, clock, ranks, device, Path(asked["folder"]))
    if ranks.first:
        Path(sys.argv[2]).write_text(json.dumps(clock.told()), encoding="utf-8")


if __name__ == "__main__":
    main()

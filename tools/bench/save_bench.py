"""What a background save costs: steps beside it against steps without, and how long training stands still.

A 33 M-parameter Transformer (409 MB a checkpoint) trains on two ranks of this machine, ZeRO-1, bf16, and saves now and
then. Then the command starts again from its last checkpoint, which tells the time from start to first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import Outcome

from pipeline.cluster.launch import launch_command

_TRAINING = Path(__file__).with_name("save_training.py")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48, help="in all (default 48)")
    parser.add_argument("--every", type=int, default=6, help="steps from save to save (default 6)")
    parser.add_argument("--sequences", type=int, default=16, help="of 512 tokens, a step (default 16)")
    parser.add_argument("--workdir", type=Path, help="where checkpoints go; default a temporary folder")


def run(options: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="bench-save-", dir=options.workdir) as folder:
        first = _train(options, Path(folder), options.steps - options.every)
        again = _train(options, Path(folder), options.steps)
    saves, steps = first["saves"], first["steps"][2:]  # the first two warm up
    beside = [end - begin for begin, end in steps if any(begin < done and at < end for at, _, done in saves)]
    free = [end - begin for begin, end in steps if not any(begin < done and at < end for at, _, done in saves)]
    usual, with_save = statistics.median(free), statistics.median(beside)
    stood = [seconds for _, seconds, _ in saves]
    lines = [
        f"{options.ranks} ranks, {options.sequences * 512:,} tokens a step, {first['bytes'] / 1e6:,.0f} MB a save:",
        "",
        "| | |",
        "|---|---:|",
        f"| a step without a save, median of {len(free)} | {usual:.3f} s |",
        f"| a step beside a save, median of {len(beside)} | {with_save:.3f} s |",
        f"| a save costs the steps beside it | {with_save / usual - 1:+.1%} |",
        f"| training stands still, median and longest | {statistics.median(stood):.3f} s, {max(stood):.3f} s |",
        f"| the longest, in steps | {max(stood) / usual:.2f} |",
        f"| written behind, median | {statistics.median(done - at for at, _, done in saves):.2f} s |",
        f"| from the command to the first step after a restart | {again['steps'][0][0] - again['started']:.1f} s |",
    ]
    return Outcome([], lines=lines, facts={"first": first, "again": again})


def _train(options: argparse.Namespace, folder: Path, last: int) -> dict[str, object]:
    """Steps to `last`; what rank 0 tells of it."""
    told = folder / "told.json"
    words = [str(folder / "run"), str(told), str(last), str(options.steps), str(options.every), str(options.sequences)]
    began = time.time()
    if status := launch_command([sys.executable, str(_TRAINING), *words], options.ranks):
        raise SystemExit(f"the training ended with status {status}")
    return json.loads(told.read_text(encoding="utf-8")) | {"started": began, "pid": os.getpid()}

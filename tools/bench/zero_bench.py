"""A step under ZeRO-0, 1, 2 and 3 on the ranks of this machine: its time, and the memory a rank holds.

The same model learns the same random tokens through our own training loop, once under each file of ds_configs; all
trainings stand ready at once and take turns step by step, so that whatever disturbs the machine disturbs all alike.
Memory is predicted as by the ZeRO paper (Rajbhandari et al., 2020, section 3) from the bytes of a weight, its gradient
and its optimizer states, and measured in the middle of a step, when gradients are held.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import cores
from measure import Outcome

from pipeline.cluster.launch import launch_command
from pipeline.train.deepspeed_files import zero_stage

_RANK = Path(__file__).with_name("zero_rank.py")
TARGETS = {1: 1.1, 2: 1.15, 3: 1.3}  # times a step of ZeRO-0
KINDS = ("weights", "gradients", "states")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configs", default="zero0,zero1,zero2,zero3", help="files; the first is what others are to")
    parser.add_argument("--ranks", type=int, default=2, help="of each training (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that are measured (default 5)")
    parser.add_argument("--dim", type=int, default=512, help="width of the model (default 512)")
    parser.add_argument("--layers", type=int, default=8, help="its layers (default 8: 33 M weights)")
    parser.add_argument("--words", type=int, default=16_384, help="its vocabulary (default 16384)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default 512)")
    parser.add_argument("--sequences", type=int, default=16, help="a step (default 16)")
    parser.add_argument("--micro", type=int, default=2, help="of them at once on a rank (default 2)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")


def run(options: argparse.Namespace) -> Outcome:
    names = options.configs.split(",")
    with tempfile.TemporaryDirectory(prefix="bench-zero-") as place:
        folder = Path(place)
        asked = {key: vars(options)[key] for key in ("ranks", "rounds", "dim", "layers", "words", "length")}
        asked |= {"sequences": options.sequences, "micro": options.micro, "precision": options.precision}
        (folder / "asked.json").write_text(json.dumps(asked | {"configs": names}), encoding="utf-8")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // options.ranks)))
        print(f"{len(names)} trainings of {options.ranks} ranks each …", file=sys.stderr, flush=True)
        # They are started as ranks of one world, and part into as many worlds as there are files (zero_rank.py).
        if status := launch_command([sys.executable, str(_RANK), str(folder)], options.ranks * len(names)):
            raise SystemExit(f"a training ended with status {status}")
        found = {
            name: json.loads((folder / f"told-{number}.json").read_text(encoding="utf-8"))
            for number, name in enumerate(names)
        }
    first = found[names[0]]
    lines = [
        f"{first['weights']:,} weights, {first['precision']}, {options.ranks} ranks on {cores()} cores, "
        f"{options.sequences} × {options.length} tokens a step in {first['accumulation']} micro-batches a rank, "
        f"{options.rounds} rounds:",
        "",
        *_times(found, names[0]),
        "",
        f"Memory of a rank in the middle of a step, MB, predicted · measured, {options.ranks} ranks:",
        "",
        *_memory(found, options.ranks),
    ]
    return Outcome([], lines=lines, facts=found)


def _times(found: dict[str, dict[str, Any]], against: str) -> list[str]:
    best, usual = ({name: of(one["seconds"]) for name, one in found.items()} for of in (min, statistics.median))
    rows = ["| | least s | median s | × least | × median | aim |", "|---|---:|---:|---:|---:|---:|"]
    for name in found:
        ratios = f"{best[name] / best[against]:.2f} | {usual[name] / usual[against]:.2f}"
        aim = TARGETS.get(zero_stage(name), "")
        rows.append(f"| {Path(name).stem} | {best[name]:.3f} | {usual[name]:.3f} | {ratios} | {aim} |")
    return rows


def predicted(stage: int, low: bool, accumulates: bool, ranks: int) -> dict[str, float]:
    """Bytes a weight and rank: of weights, gradients, optimizer states (fp32 weight and AdamW's two moments).

    low: computed in 16 bits. As ds_configs/README.md: ZeRO-0 keeps everything in fp32 and needs no second copy of the
    weights; stages 2 and 3 accumulate gradients in fp32.
    """
    if stage == 0:
        return {"weights": 4, "gradients": 4, "states": 8}
    weight = 2 if low else 4
    gradient = 2 if low and not (stage >= 2 and accumulates) else 4
    return {
        "weights": weight / (ranks if stage >= 3 else 1),
        "gradients": gradient / (ranks if stage >= 2 else 1),
        "states": 12 / ranks,
    }


def _memory(found: dict[str, dict[str, Any]], ranks: int) -> list[str]:
    rows = [
        "| | weights | gradients | optimizer states | together | other tensors | resident above the start |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        rule = predicted(zero_stage(name), one["precision"] != "fp32", one["accumulation"] > 1, ranks)
        expected = {kind: share * one["weights"] for kind, share in rule.items()}
        held = one["held"]
        cells = [f"{expected[kind] / 1e6:,.0f} · {held[kind] / 1e6:,.0f}" for kind in KINDS]
        cells.append(f"{sum(expected.values()) / 1e6:,.0f} · {sum(held[kind] for kind in KINDS) / 1e6:,.0f}")
        rows.append(
            f"| {Path(name).stem} | {' | '.join(cells)} | {held['others'] / 1e6:,.0f} | {one['resident'] / 1e6:,.0f} |"
        )
    return rows

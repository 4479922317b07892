"""A training's speed beside the machine's matrix products: our loop, plain torch, Hugging Face's Trainer.

Each trains the same model on the same random tokens with AdamW, in a process of its own: tokens/s, MFU, memory, and
the time to the first step, compilation included (nothing of it is kept from before). On a machine with an NVIDIA GPU
the sizes are those of the shipped recipes, else the 33 M-parameter model of 512 tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from machine import cores
from measure import Contender, Outcome, measure
from train_cases import KINDS, Case, Size, cases, published_peak, sizes

FORMULA = (
    "MFU: tokens/s · (6 · N + 6 · layers · length · dim) / peak; N: weights that multiply, the output layer with them, "
    "the embedding not; the second term is attention, causal."
)
HEAD = "| | tokens/s | MFU | × {} | peak MiB | first step s | steps |"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs="+", default=[], help="default: 33m, or all of the GPU's")
    parser.add_argument(
        "--contenders", nargs="+", default=[], metavar="NAME", help=f"{', '.join(KINDS)}; -compiled, :RANKS behind"
    )
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: what the processor is fast in")
    parser.add_argument("--seconds", type=float, default=25, help="that are measured of each (default 25)")
    parser.add_argument("--warm", type=int, default=2, help="steps before that (default 2)")
    parser.add_argument("--sequences", type=int, default=0, help="of a step, when not as usual for the size")
    parser.add_argument("--micro", type=int, default=0, help="sequences at once on a rank, likewise")
    parser.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="more settings of our loop")
    parser.add_argument("--first-step", action="store_true", help="a compiled 125M model's, with cold and warm cache")
    parser.add_argument("--list", action="store_true", help="say what would be measured")


@dataclass(frozen=True)
class Machine:
    """gpus: how many; dtype: what is trained in; name: of the GPU."""

    gpus: int
    dtype: str
    name: str

    @classmethod
    def find(cls, dtype: str | None) -> Machine:
        """This one. dtype: as asked for, else what the device is fast in."""
        import torch

        from pipeline.cluster.device import gpu_count, processor_has_fast_bf16

        gpus = gpu_count()
        fast = "bf16" if gpus or processor_has_fast_bf16() else "fp32"
        return cls(gpus, dtype or fast, torch.cuda.get_device_name(0) if gpus else "")


def run(options: argparse.Namespace) -> Outcome:
    machine = Machine.find(options.dtype)
    names = options.size or (["125m-2048" if machine.gpus else "125m-512"] if options.first_step else [])
    chosen = sizes(names, machine.gpus, options.sequences, options.micro)
    if options.first_step:
        return _first_steps(chosen[0], machine, options)
    planned = {size: cases(size, options.contenders, machine.gpus, machine.dtype, options.ours) for size in chosen}
    if options.list:
        lines = [line for size, several in planned.items() for line in (size.title, *(f"- {c.name}" for c in several))]
        return Outcome([], lines=lines)
    peaks = [_peak(machine)]
    lines, facts = [], {}
    for size, several in planned.items():
        found = {case: _measured(case, options.seconds, options.warm) for case in several}
        peaks.append(_peak(machine))
        table = _table(size, machine, found, peaks[-2:])
        print("\n".join(["", *table, ""]), file=sys.stderr, flush=True)  # what comes later may take long
        lines += [*table, ""]
        facts[size.name] = {case.name: told for case, told in found.items()}
    return Outcome([], lines=[*lines, FORMULA], facts={"peaks": peaks, "sizes": facts})


def _peak(machine: Machine) -> dict[str, float]:
    """FLOP/s of matrix products, by type."""
    made = measure(Contender("matrix products", "train_process:peak", threads=cores()))
    assert made is not None, "this very package"
    return {name: float(value) for name, value in made.result.items()}


def _measured(case: Case, seconds: float, warm: int, least: int = 3) -> dict[str, Any]:
    """What a case took, or why it did not come to it: `failed`. The compiler's cache is new."""
    from pipeline.cluster.device import compiler

    if case.compiled and compiler() is None:
        return {"failed": "no C++ compiler is here"}
    with _compiler_cache():
        return _in_a_process(case, seconds, warm, least)


def _in_a_process(case: Case, seconds: float, warm: int, least: int) -> dict[str, Any]:
    settings = {"case": case.told(), "seconds": seconds, "warm": warm, "least": least}
    try:
        made = measure(Contender(case.name, "train_process:training", _PACKAGES[case.kind], settings, cores(), True))
    except SystemExit as error:
        return {"failed": _reason(str(error))}
    return made.result | {"memory": made.peak} if made else {"failed": f"{_PACKAGES[case.kind]} is not installed"}


_PACKAGES = {"ours": "headwater", "torch": "torch", "torch-bf16": "torch", "trainer": "accelerate"}


def _reason(said: str) -> str:
    """The last line that names an error, of a process's last words."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line and "launch" not in line]
    return (named or lines or ["it said nothing"])[-1][:200]


@contextmanager
def _compiler_cache() -> Iterator[None]:
    """An empty folder for what torch.compile keeps, for processes started meanwhile."""
    with tempfile.TemporaryDirectory(prefix="bench-compiled-") as folder:
        wanted = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ |= wanted
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _table(size: Size, machine: Machine, found: dict[Case, dict[str, Any]], peaks: list[dict[str, float]]) -> list[str]:
    """Markdown: a row a case, each beside compiled plain torch where that came to an end, else the first."""
    speeds = {
        case: told["steps"] * size.sequences * size.length / told["measured_seconds"]
        for case, told in found.items()
        if "failed" not in told
    }
    plain = [case for case in speeds if case.kind.startswith("torch")]
    against = next(
        (case for case in plain if case.compiled and case.kind == "torch"), next(iter([*plain, *speeds]), None)
    )
    published = published_peak(machine.name) if machine.dtype == "bf16" else None
    peak = published or max(one[machine.dtype] for one in peaks)
    products = ", ".join(f"{name} {max(one[name] for one in peaks) / 1e12:.3g}" for name in ("bf16", "fp32"))
    lines = [
        f"{size.title}, {machine.dtype}. Matrix products, TFLOP/s: {products}; MFU against "
        f"{f'the published {published / 1e12:.0f}' if published else machine.dtype + ' as measured'}.",
        "",
        HEAD.format(against.name if against else ""),
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, told in found.items():
        if case not in speeds:
            lines.append(f"| {case.name} | {told['failed'].replace('|', '/')} | | | | | |")
            continue
        speed, many = speeds[case], case.ranks if machine.gpus else 1
        ratio = speed / speeds[against] if against else 1.0
        memory = (told["gpu"] * case.ranks if machine.gpus else told["memory"]) / 2**20
        numbers = (f"{speed * size.flops / (peak * many):.3f}", f"{ratio:.2f}", f"{memory:,.0f}")
        lines.append(f"| {case.name} | {speed:,.0f} | {' | '.join(numbers)} | {told['first']:.1f} | {told['steps']} |")
    where = "allocated on the GPU" if machine.gpus else "of all processes, shared pages once (PSS)"
    return [*lines, "", f"Peak MiB: {where}."]


def _first_steps(size: Size, machine: Machine, options: argparse.Namespace) -> Outcome:
    """From the command to the end of the first step: not compiled, compiled, and compiled again."""
    plain, compiled = (Case(size, "ours", one, 1, machine.dtype, tuple(options.ours)) for one in (False, True))
    if options.list:
        return Outcome([], lines=[size.title, f"- {plain.name}", f"- {compiled.name}, cold and warm cache"])
    found = {"not compiled": _measured(plain, 0, 1, 0)}
    with _compiler_cache():
        for name in ("compiled, cold cache", "compiled, warm cache"):
            found[name] = _in_a_process(compiled, 0, 1, 0)
    rows = [f"| {name} | {_seconds(told)} |" for name, told in found.items()]
    return Outcome(
        [], lines=[f"{size.title}, {machine.dtype}", "", "| first step after | s |", "|---|---:|", *rows], facts=found
    )


def _seconds(told: dict[str, Any]) -> str:
    return told["failed"] if "failed" in told else f"{told['first']:.1f}"

"""What the same small budget teaches: our recipe, a GPT-2 with AdamW, an LSTM; bits per byte of held-out Python.

The text is Python's standard library and torch's package, every 50th file held out, in 8,192 words; recipes stand in
learn/. A budget is so many tokens, or so many seconds, for which each is given the tokens that it gets through; rates
fall over all of it. Trainings that are done stay in --workdir: the same command goes on with those that are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from learn_picture import draw
from measure import Outcome

HERE = Path(__file__).parent
CONTENDERS = {"ours": "Headwater", "gpt2": "GPT-2, AdamW", "lstm": "LSTM, AdamW", "muon": "Llama, Muon as usual"}
USUAL = ("ours", "gpt2", "lstm")
BASELINE = "gpt2"
FIRST_SEED = 1234
PILOTS = (60_000, 180_000)  # tokens of the trainings that tell how many a contender gets through
Runs = dict[str, list[dict[str, Any]]]  # contender → what its trainings told, one a seed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=USUAL, help=f"default {' '.join(USUAL)}")
    parser.add_argument("--tokens", type=float, default=800_000, help="of a budget (default 800,000); 0: no such one")
    parser.add_argument("--seconds", type=float, default=120, help="of another (default 120); 0: no such one")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train (default 1)")
    parser.add_argument("--points", type=int, default=6, help="of a curve (default 6)")
    parser.add_argument("--packages", nargs="+", default=["stdlib", "torch"], help="whose sources are the text")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench-learn"), help="default runs/bench-learn")
    parser.add_argument("--output", type=Path, help="folder for the pictures; default the workdir")
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help="of all recipes")


def run(options: argparse.Namespace) -> Outcome:
    _make_tokens(options.workdir / "text", options.packages)
    output = options.output or options.workdir
    output.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    facts: dict[str, Any] = {}
    for kind, amount in (("tokens", options.tokens), ("seconds", options.seconds)):
        if not amount:
            continue
        found = {name: _trainings(name, kind, amount, options) for name in options.contenders}
        picture = output / f"learn-{kind}.svg"
        draw(picture, {CONTENDERS[name]: told for name, told in found.items()}, kind)
        lines += [*_table(found, kind, amount, options), "", f"Picture: {picture}", ""]
        facts[kind] = found
    return Outcome([], lines=lines, facts=facts)


def _make_tokens(folder: Path, packages: list[str]) -> None:
    """Text, tokenizer and tokens by the pipeline's own stages; what is there stays."""
    source = f"{{name: python, type: python_docs, packages: [{', '.join(packages)}], language: code}}"
    for stage in ("shard", "tokenizer", "tokenize"):
        words = [
            str(HERE / "learn" / "text.yaml"),
            f"workdir={folder}",
            "tracking.enabled=no",
            f"corpus.sources=[{source}]",
        ]
        if status := subprocess.run([sys.executable, "-m", "pipeline", stage, *words], check=False).returncode:
            raise SystemExit(f"{stage} failed with status {status}")


def _trainings(name: str, kind: str, amount: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One training a seed."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        tokens = amount if kind == "tokens" else _affordable(name, amount, options)
        print(f"{CONTENDERS[name]}, seed {seed}, {tokens:,.0f} tokens …", file=sys.stderr, flush=True)
        found.append(_train(name, options, options.points, [f"seed={seed}", f"pretrain.tokens={int(tokens)}"]))
    return found


def _affordable(name: str, seconds: float, options: argparse.Namespace) -> float:
    """Tokens that a contender gets through here in so many seconds: by two short trainings, which tell what a token
    costs and what the start of each phase does, compilation with it."""
    one, two = (
        _train(name, options, 0, [f"pretrain.tokens={tokens}", "pretrain.validation_windows=1"]) for tokens in PILOTS
    )
    each = (two["seconds"] - one["seconds"]) / (two["tokens"] - one["tokens"])
    return float(one["tokens"] + (seconds - one["seconds"]) / each)


def _train(name: str, options: argparse.Namespace, points: int, words: list[str]) -> dict[str, Any]:
    """Train a contender, or take over what it told when it was trained before with all the same.

    Raises: SystemExit when it fails.
    """
    from pipeline.cluster.launch import launch_command

    words = ["pretrain.validation_windows=96", *options.settings, *words]
    recipes = "".join((HERE / "learn" / f"{one}.yaml").read_text(encoding="utf-8") for one in ("text", name))
    asked = json.dumps([name, recipes, options.packages, points, options.ranks, words])
    folder = options.workdir / "trainings" / f"{name}-{hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()}"
    told = folder / "told.json"
    if not told.exists():
        shutil.rmtree(folder, ignore_errors=True)  # half done: its points are lost
        folder.mkdir(parents=True)
        places = [f"workdir={folder}", f"pretrain.tokens_from={options.workdir / 'text' / 'tokens'}"]
        fixed = ["tracking.enabled=no", "pretrain.checkpoint_minutes=1e6", "pretrain.self_test=no"]
        command = [sys.executable, str(HERE / "learn_training.py"), name, str(told), str(points)]
        if status := launch_command([*command, *words, *places, *fixed], options.ranks):
            raise SystemExit(f"{CONTENDERS[name]} failed with status {status}")
        shutil.rmtree(folder / "checkpoints")
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def _table(found: Runs, kind: str, amount: float, options: argparse.Namespace) -> list[str]:
    """Markdown: a row a contender, mean and spread over its seeds."""
    lines = [
        f"{amount:,.0f} {kind} each, {options.seeds} seeds, {options.ranks} rank{'s' * (options.ranks > 1)}; bits per "
        "byte of all held-out text: mean (least–most):",
        "",
        f"| | weights | tokens | seconds | bits per byte | against {CONTENDERS[BASELINE]} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = _mean(found[BASELINE], "bits_per_byte") if BASELINE in found else None
    for name, told in found.items():
        bits = [one["bits_per_byte"] for one in told]
        mean = statistics.fmean(bits)
        against = f"{mean / base - 1:+.1%}" if base else ""
        numbers = f"{told[0]['parameters']:,} | {_mean(told, 'tokens'):,.0f} | {_mean(told, 'seconds'):,.0f}"
        lines.append(f"| {CONTENDERS[name]} | {numbers} | {mean:.3f} ({min(bits):.3f}–{max(bits):.3f}) | {against} |")
    return lines


def _mean(told: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(one[key] for one in told)

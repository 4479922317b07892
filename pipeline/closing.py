"""The last lines of `pipeline run`: what was made, how good it is, what to try next."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.stages import stages
from pipeline.status.show import size
from pipeline.typed import typed_again


def closing_lines(recipe: Recipe, made: dict[str, Manifest], typed: str, words: Sequence[str]) -> list[str]:
    """The sum of a finished run.

    Args: made, each stage's manifest; typed, the recipe as typed; words, the `key=value` words as typed.
    """
    workdir, found = recipe.workdir, stages(recipe)
    lines = ["", f"Made in {workdir} (seed {recipe.seed}):"]
    for name, manifest in made.items():
        folder, made_in = workdir / found[name].folder, f"{round(manifest.seconds)} s"
        lines.append(f"  {name:<20} {size(manifest.total_bytes()):>9} {made_in:>8}   {folder}")
    lines += ["", "How good it is, on held-out data:", *quality_lines(recipe)]
    store = os.path.relpath(workdir.parent / "mlflow.db")
    tracked = recipe.tracking.enabled and not (recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    run = typed_again(typed, words)
    sft = next((name for name, task in recipe.finetune.items() if task.task == "sft"), None)
    prompt = next(iter(recipe.evaluate.prompts), "def ")
    chat = f"--chat --task {sft}" if sft else f"--prompt {shlex.quote(prompt)}"
    lines += [
        "",
        "Try next:",
        *([f"  {_program('pipeline')} generate {run} {chat}"] if sft or not recipe.only_finetunes else []),
        *([f"  {_program('mlflow')} ui --backend-store-uri {shlex.quote('sqlite:///' + store)}"] if tracked else []),
        f"  {_program('pipeline')} run my.yaml        # your own text: five lines of YAML, see README.md",
        "",
        f"Report: {workdir / 'report.html'}",
    ]
    return lines


def quality_lines(recipe: Recipe) -> list[str]:
    """One line a model that was evaluated, each beside what it must beat."""
    folder = recipe.workdir / "evaluation"
    lines = []
    if not recipe.only_finetunes:
        language = _read(folder / "language_model.json")
        baselines = ", ".join(f"{name} {value:.3f}" for name, value in language["baselines"].items())
        lines.append(f"  pretrained: {language['bits_per_byte']:.3f} bits per byte ({baselines})")
    for name, task in recipe.finetune.items():
        found = _read(folder / f"{name}.json")
        if task.task in ("sft", "seq2seq"):
            before, after = (_rouge(found[model]) for model in ("base", "finetuned"))
            lines.append(f"  {name}: ROUGE-L {after:.3f} (before fine-tuning {before:.3f})")
        elif task.task == "continue":
            before, after = (found[model]["bits_per_byte"] for model in ("base", "finetuned"))
            lines.append(f"  {name}: {after:.3f} bits per byte (before more pretraining {before:.3f})")
        elif task.problem == "regression":
            lines.append(f"  {name}: RMSE {found['rmse']:.3f} (always the mean {found['mean_rmse']:.3f})")
        elif task.problem == "multi_label":
            lines.append(f"  {name}: all labels right {found['accuracy']:.1%} (never any {found['none_accuracy']:.1%})")
        else:
            lines.append(
                f"  {name}: accuracy {found['accuracy']:.1%} (majority class {found['majority_accuracy']:.1%}), "
                f"macro-F1 {found['macro_f1']:.3f}"
            )
    return lines


def _program(name: str) -> str:
    """How to call a program of this environment from here: by its name where the shell finds it, else by its path."""
    own = Path(sys.executable).parent / name
    found = shutil.which(name)
    return name if found and Path(found).resolve() == own.resolve() else shlex.quote(os.path.relpath(own))


def _rouge(metrics: dict[str, float]) -> float:
    return next(value for name, value in metrics.items() if name.lower().replace("-", "").startswith("rougel"))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

"""A finished run as files: manifests, metrics and evaluations in their documented formats, hostile text in them."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import Manifest, Work
from pipeline.recipe import Recipe
from pipeline.report.build import write_report
from pipeline.spool import Spool

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & $\\frac{a}{b}$ \u202eabc\ud800\x01'
CHINESE = "春江潮水连海平，海上明月共潮生。"


def part(documents: int, size: int) -> dict[str, int]:
    return {"documents": documents, "bytes": size}


def finish(recipe: Recipe, stage: str, folder: str, inputs: dict[str, str], **made: Any) -> Manifest:
    work = Work(stage, recipe.workdir / folder, f"key of {stage}", {"some": "setting"}, inputs)
    work.folder.mkdir(parents=True, exist_ok=True)
    output = work.folder / "output.txt"
    output.write_text(f"what {stage} made\n", encoding="utf-8")
    return work.finish([output], **made)


def write_curves(recipe: Recipe, stage: str, steps: int) -> None:
    spool = Spool(recipe.workdir / "logs", stage)
    spool.begin(f"key of {stage}")
    noise = random.Random(1)
    for step in range(10, steps + 1, 10):
        loss = 2.2 + 6.8 * math.exp(-step / 60) + noise.gauss(0, 0.05)
        found = {"loss": loss, "learning_rate": 4e-3 * (1 + math.cos(math.pi * step / steps)) / 2}
        found |= {"tokens_per_second": 8000 + noise.gauss(0, 200), "mfu": 0.4, "data_wait": 0.01, "memory_gib": 1.5}
        line = {"step": step, "time": 1.7e9 + step, "metrics": found}
        spool.metrics.append(line)
        if stage != "pretrain":
            line["metrics"] = {"loss": loss}
        elif step % 50 == 0:
            held_out = {"validation/loss": loss + 0.1, "validation/bits_per_byte": loss / 3.3}
            spool.metrics.append({**line, "metrics": held_out})
    load = {"system/cpu_utilization_percentage": 97.0, "system/system_memory_usage_megabytes": 6500.0}
    spool.metrics.append({"step": 10, "time": 1.7e9, "metrics": load})


def make_recipe(folder: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "description": f"a run to report on {HOSTILE}".encode("utf-8", "replace").decode(),
            "workdir": folder / "a run",
            "corpus": {"sources": [{"name": "python", "type": "python_docs"}]},
            "finetune": {
                "summarize": {"task": "sft", "data": "docstring_summaries"},
                "package": {"task": "classify", "data": "docstring_packages"},
            },
        }
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(tmp_path)


@pytest.fixture
def finished(tmp_path: Path) -> Recipe:
    """All stages done; without curves, which take time to draw."""
    found = make_finished(tmp_path)
    shutil.rmtree(found.workdir / "logs")
    return found


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """All stages done, and the report written. Not to be changed."""
    found = make_finished(tmp_path_factory.mktemp("reported"))
    write_report(found)
    return found


def make_finished(folder: Path) -> Recipe:
    """A run whose stages are all done."""
    recipe = make_recipe(folder)
    text, held = part(2762, 57_825_180), part(39, 686_679)
    dropped = {"duplicate": part(3, 618), "empty": part(81, 0), "min_characters": part(119, 12_312)}
    counts = {"read": part(3013, 59_902_976), "kept": part(2801, 58_511_859), "train": {**text, "tars": 8}}
    counts |= {"validation": {**held, "tars": 8}, "dropped": dropped}
    poem = {"read": part(10, 900), "kept": part(10, 900), "train": part(9, 800), "validation": part(1, 100)}
    sources = {"python": counts, "poetry": {**poem, "dropped": {}}}
    spoken = {
        "en": {**counts},
        HOSTILE[:30]: {**poem, "dropped": {"language": part(4, 10), "c4.min_sentences": part(2, 9)}},
    }
    counts["languages"] = {
        code: {key: found[key] for key in ("read", "kept", "dropped")} for code, found in spoken.items()
    }
    shard = finish(recipe, "shard", "text", {"source:python": "0" * 32}, counts={**counts, "sources": sources})
    tokenizer = finish(
        recipe, "tokenizer", "tokenizer", {"shard": shard.fingerprint},
        counts={"vocab_size": 8192, "engine": "gigatoken"}, metrics={"bytes_per_token": 3.31},
    )  # fmt: skip
    tokens = {"tokens": 17_500_000, "documents": 2762, "bytes": 57_825_180}
    tokenize = finish(
        recipe, "tokenize", "tokens", {"shard": shard.fingerprint, "tokenizer": tokenizer.fingerprint},
        counts={"train": tokens, "validation": {**tokens, "tokens": 207_000}, "dtype": "uint16"},
    )  # fmt: skip
    pretrain = finish(
        recipe, "pretrain", "checkpoints",
        {"tokenizer": tokenizer.fingerprint, "tokenize": tokenize.fingerprint},
        counts={"parameters": 5_243_136, "steps": 366, "tokens": 1_500_000}, metrics={"loss": 2.41},
    )  # fmt: skip
    export = finish(recipe, "export", "model", {"tokenizer": tokenizer.fingerprint, "pretrain": pretrain.fingerprint})
    tuned = {
        f"finetune.{name}": finish(
            recipe, f"finetune.{name}", f"finetune/{name}", {"export": export.fingerprint}, metrics={"loss": 1.5}
        ).fingerprint
        for name in recipe.finetune
    }
    for stage in ("pretrain", *tuned):
        write_curves(recipe, stage, 360)
    evaluation = recipe.workdir / "evaluation"
    evaluation.mkdir(parents=True)
    for name, value in EVALUATIONS.items():
        (evaluation / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    finish(recipe, "evaluate", "evaluation", {"shard": shard.fingerprint, "export": export.fingerprint, **tuned})
    return recipe


EVALUATIONS: dict[str, Any] = {
    "language_model": {
        "loss": 3.21, "perplexity": 24.8, "bits_per_byte": 1.398, "tokens": 207_000, "bytes": 686_679,
        "documents": 39, "context": 512, "stride": 256,
        "baselines": {"gzip -9": 1.91, "xz -9": 1.62, "order-0 bytes": 4.71},
        "by_source": {
            "python": {"bits_per_byte": 1.398, "perplexity": 24.8, "bytes": 686_579},
            "poetry": {"bits_per_byte": 2.8, "perplexity": 300.0, "bytes": 100},
        },
    },
    "summarize": {
        "task": "sft", "examples": 200,
        "base": {"rougeL": 0.081, "bleu": 0.4, "chrf": 9.1, "distinct_1": 0.21, "distinct_2": 0.5},
        "finetuned": {"rougeL": 0.222, "bleu": 4.2, "chrf": 21.0, "distinct_1": 0.4, "distinct_2": 0.7},
        "samples": [
            {"prompt": f"def read(path):\n    return {HOSTILE}", "reference": "Read a file.", "base": HOSTILE,
             "finetuned": CHINESE},
            {"prompt": "def f(): pass", "reference": "Nothing.", "base": "", "finetuned": "Do nothing."},
        ],
    },
    "package": {
        "task": "classify", "examples": 300, "accuracy": 0.81, "macro_f1": 0.74, "majority_accuracy": 0.41,
        "majority_label": "torch", "labels": ["torch", "sympy", "诗词", HOSTILE],
        "ece": 0.07, "auc": 0.9, "micro_f1": 0.81,
        "intervals": {"accuracy": [0.77, 0.85], "macro_f1": [0.69, 0.79]},
        "calibration": [
            {"confidence": 0.45, "accuracy": 0.3, "examples": 40},
            {"confidence": 0.95, "accuracy": 0.89, "examples": 260},
        ],
        "groups": {
            HOSTILE: {"examples": 100, "accuracy": 0.7, "macro_f1": 0.6, "interval": [0.61, 0.79]},
            "诗": {"examples": 1, "accuracy": 1.0, "macro_f1": 1.0},
        },
        "largest_gap": {"best": "诗", "worst": HOSTILE, "accuracy": 0.3},
        "confusion": [[110, 8, 3, 1], [9, 80, 5, 0], [4, 6, 40, 2], [7, 8, 4, 13]],
        "per_class": {
            label: {"precision": 0.8, "recall": 0.79, "f1": 0.795, "support": 100}
            for label in ("torch", "sympy", "诗词", HOSTILE)
        },
    },
    "samples": [
        {"prompt": "def ", "text": f"def main():\n    {HOSTILE}"},
        {"prompt": "床前", "text": f"床前{CHINESE}"},
    ],
}  # fmt: skip

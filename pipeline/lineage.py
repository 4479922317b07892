"""What MLflow is told of a stage beside its numbers: settings, data it read, its manifest, how it ended, its model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.errors import EnvironmentFault, PipelineError, Stopped
from pipeline.files import fingerprint, sha256_file
from pipeline.journal import Line
from pipeline.manifest import MANIFEST, Manifest, Work
from pipeline.printable import without_secrets
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.spool import Spool

FOLDERS = {
    "shard": "text",
    "tokenizer": "tokenizer",
    "tokenize": "tokens",
    "pretrain": "checkpoints",
    "export": "model",
    "evaluate": "evaluation",
}
CONTINUES = "stopped early; the same command continues it"


def folder_of(recipe: Recipe, stage: str) -> Path:
    """Where a stage's files lie."""
    return recipe.workdir / FOLDERS.get(stage, stage.replace(".", "/", 1))


def key_of_run(recipe: Recipe, stage: str, key: str) -> str:
    """What a stage's MLflow run is known by: its key; of a task with a grid, under whose run those of its combinations
    stand before there is such a key, its settings."""
    task = recipe.finetune.get(stage.partition(".")[2])
    return fingerprint([stage, task.settings(), recipe.seed]) if task and task.grid else key


def inputs(recipe: Recipe, work: Work) -> list[Line]:
    """The data a stage reads: name, digest (the fingerprint of what made it), where it lies, what kind it is."""
    found = []
    for name, digest in work.inputs.items():
        kind, colon, source = name.partition(":")
        if colon:  # a source of the corpus, or files that the recipe names
            known = next((item for item in recipe.corpus.sources if item.name == source), None)
            path = getattr(known, "path", None) or (known.type if known else source)
        elif name in ("tokens_from", "base"):  # what was made elsewhere
            path = without_secrets(str(recipe.pretrain.tokens_from if name == "tokens_from" else recipe.model.base))
        else:
            path = folder_of(recipe, name).absolute().as_posix()
        found.append({"name": source or kind, "digest": digest, "path": str(path), "context": kind})
    return found


def log_manifest(made: Manifest, folder: Path, spool: Spool, parent: Spool) -> None:
    """A stage has finished: its manifest, counts and metrics; the metrics beside those of other runs on the parent.

    They are told as `result/…` and `counts/…`, apart from the curves of the same name.
    """
    facts = {"headwater.key": made.key, "headwater.fingerprint": made.fingerprint}
    spool.event("tags", tags={**facts, "headwater.bytes": str(made.total_bytes())})
    parent.event("tags", tags={f"fingerprint.{made.stage}": made.fingerprint})
    offer(spool, folder / MANIFEST)
    if made.stage == "tokenizer":
        offer(spool, folder / "tokenizer.json", "tokenizer")
    counts = {name: float(value) for name, value in flat(made.counts, "/").items() if _is_number(value)}
    results = {"seconds": made.seconds, **made.metrics}
    line: Line = {"step": None, "time": round(time.time(), 3)}
    told = {f"result/{name}": float(value) for name, value in results.items()}
    spool.metrics.append({**line, "metrics": told | {f"counts/{name}": value for name, value in counts.items()}})
    parent.metrics.append({**line, "metrics": {f"{made.stage}/{name}": float(v) for name, v in results.items()}})
    for each in (spool, parent):
        each.event("status", status="FINISHED")


def log_forgotten(recipe: Recipe, spool: Spool, parent: Spool) -> None:
    """Tell of a stage that was killed after its manifest was committed and before that was told."""
    folder, began = folder_of(recipe, spool.name), spool.began()
    if began is None or spool.finished() or not (folder / MANIFEST).is_file():
        return
    made = manifests.load(folder)
    if key_of_run(recipe, spool.name, made.key) == began["key"]:
        log_manifest(made, folder, spool, parent)


def log_failure(error: BaseException, spool: Spool, *above: Spool) -> None:
    """A stage has ended without a manifest: in which state, and why. above: spools of the runs that hold its own."""
    status, why = "FAILED", without_secrets(" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, Stopped):
        status, why = "SCHEDULED", CONTINUES
    elif isinstance(error, KeyboardInterrupt):
        status, why = "KILLED", "interrupted"
    elif not isinstance(error, PipelineError):
        why = f"{type(error).__name__}: {why}"
    try:
        for each in (spool, *above):
            each.event("status", status=status, why=f"{spool.name}: {why}"[:500])
    except EnvironmentFault as full:  # the disk; the error that is on its way matters more
        log.warning("tracking: %s", full)


def offer(spool: Spool, path: Path, folder: str = "") -> bool:
    """A file as an artifact under `folder`, unless the same content was offered before. Returns whether it is new."""
    if not path.is_file():
        return False
    told = {"path": str(path.absolute()), "folder": folder, "sha256": sha256_file(path)}
    before = [line for line, _ in spool.events.read() if line.get("path") == told["path"]]
    if before and before[-1].get("sha256") == told["sha256"]:
        return False
    spool.event("artifact", **told)
    return True


def offer_model(spool: Spool, name: str, made: Path, folder: Path, task: str) -> None:
    """A model directory for the registry, unless it is there; `made` holds the manifest of the stage that made it."""
    if not (made / MANIFEST).is_file():
        return
    manifest = manifests.load(made)
    told = {"name": name, "folder": str(folder.absolute()), "fingerprint": manifest.fingerprint, "task": task}
    before = [line for line, _ in spool.events.read() if line.get("kind") == "model"]
    if not any(all(line.get(key) == value for key, value in told.items()) for line in before):
        spool.event("model", stage=manifest.stage, **told)


def flat(value: object, dot: str = ".", prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names; lists and the rest as JSON."""
    if isinstance(value, Mapping) and (value or not prefix):
        parts = [flat(item, dot, f"{prefix}{dot}{key}" if prefix else str(key)) for key, item in value.items()]
        return {name: item for part in parts for name, item in part.items()}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return {prefix: without_secrets(text)}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text) is not None


def grid_of(stage: str) -> str:
    """The stage of the task whose grid a stage is a combination of; empty for all others."""
    return stage.partition("@")[0] if "@" in stage else ""

"""The stages, what each depends on, and the one way to run them: skip, continue, or set aside and begin.

A stage is a module with `run(recipe, work, tracker) -> Manifest`. It is imported only when there is work to do, so
that a run whose stages are all done says so within seconds.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.errors import DataError, RecipeError
from pipeline.files import fingerprint, write_json
from pipeline.manifest import BUILDING, MANIFEST, Manifest, Work
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

Settings = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One arrow of the data's journey.

    name: as typed (`shard`; `finetune.<task>` for each task). folder: under workdir. needs: stages whose manifests it
    reads. module: where `run` lives. settings: the part of the recipe that decides what it makes. version: raised
    when the code makes something else from the same input. trains: it runs on every rank of a launcher.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    module: str
    settings: Callable[[Recipe], Settings]
    version: int = 1
    trains: bool = False
    sources: Callable[[Recipe], dict[str, str]] = lambda recipe: {}


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe, in the order in which they run."""
    seed = {"seed": recipe.seed}
    found = [
        Stage(
            "shard",
            "text",
            (),
            "pipeline.corpus.shard",
            _shard_settings,
            sources=_source_fingerprints,
        ),
        Stage(
            "tokenizer",
            "tokenizer",
            ("shard",),
            "pipeline.tokens.train_tokenizer",
            lambda r: r.tokenizer.settings(),
            sources=_tokenizer_fingerprint,
        ),
        Stage(
            "tokenize", "tokens", ("shard", "tokenizer"), "pipeline.tokens.tokenize", lambda r: r.tokenize.settings()
        ),
        Stage(
            "pretrain",
            "checkpoints",
            ("tokenizer", "tokenize"),
            "pipeline.train.pretrain",
            lambda r: {"model": r.model.settings(), "pretrain": r.pretrain.settings(), "weights": _weights(r)} | seed,
            trains=True,
        ),
        Stage(
            "export",
            "model",
            ("tokenizer", "pretrain"),
            "pipeline.model.export",
            lambda r: {"export": r.export.settings(), "model": r.model.settings()},
        ),
    ]
    for name, task in recipe.finetune.items():
        made_from_text = ("shard",) if task.data.startswith("docstring") else ()
        found.append(
            Stage(
                f"finetune.{name}",
                f"finetune/{name}",
                (*made_from_text, *(() if task.base else ("export",))),
                "pipeline.train.finetune",
                lambda r, name=name: r.finetune[name].settings() | seed,  # type: ignore[misc]
                trains=True,
                sources=lambda r, name=name: _finetune_fingerprints(r, name),  # type: ignore[misc]
            )
        )
    found.append(
        Stage(
            "evaluate",
            "evaluation",
            ("shard", "export", *(f"finetune.{name}" for name in recipe.finetune)),
            "pipeline.evaluate.evaluate",
            lambda r: r.evaluate.settings() | seed,
        )
    )
    return {stage.name: stage for stage in found}


def _shard_settings(recipe: Recipe) -> Settings:
    """All of `corpus` but the sources' weights, which only the training stream reads."""
    settings = recipe.corpus.settings()
    sources = [{name: value for name, value in source.items() if name != "weight"} for source in settings["sources"]]
    return settings | {"sources": sources}


def _weights(recipe: Recipe) -> dict[str, float]:
    return {source.name: source.weight for source in recipe.corpus.sources}


def _source_fingerprints(recipe: Recipe) -> dict[str, str]:
    from pipeline.corpus.sources import source_fingerprint

    if not recipe.corpus.sources:  # told before what another recipe made is set aside
        raise DataError("corpus.sources is empty; name at least one source of text in the recipe")
    return {f"source:{source.name}": source_fingerprint(source) for source in recipe.corpus.sources}


def _tokenizer_fingerprint(recipe: Recipe) -> dict[str, str]:
    return {"tokenizer:path": _folder_fingerprint(Path(recipe.tokenizer.path))} if recipe.tokenizer.path else {}


def _finetune_fingerprints(recipe: Recipe, name: str) -> dict[str, str]:
    from pipeline.corpus.sources import path_fingerprint

    task = recipe.finetune[name]
    files = {"train_files": task.train_files, "validation_files": task.validation_files}
    found = {label: path_fingerprint(pattern) for label, pattern in files.items() if pattern}
    return found | ({"base": _folder_fingerprint(Path(task.base))} if task.base else {})


def _folder_fingerprint(folder: Path) -> str:
    """Names, sizes and times of the files of a model directory, which is read as a whole."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder that holds a model or tokenizer.json")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


# --- state of a stage ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What would happen to a stage now. state: `done`, `continue` (half-done), `changed` (made with other settings
    or inputs) or `new`; why: in words; manifest: of a stage that is done."""

    state: str
    why: str
    stage: Stage
    work: Work
    manifest: Manifest | None = None


def status(recipe: Recipe, name: str) -> Status:
    """Look at a stage's folder without touching it.

    Raises: DataError when a stage it needs has not run, or an output was damaged.
    """
    stage = _stage(recipe, name)
    folder = recipe.workdir / stage.folder
    inputs = stage.sources(recipe)
    for need in stage.needs:
        upstream = recipe.workdir / _stage(recipe, need).folder
        if not (upstream / MANIFEST).is_file():
            raise DataError(
                f"{name}: needs {upstream}, which stage {need} makes; run `pipeline {need.split('.')[0]}` first, "
                "or `pipeline run` for all stages"
            )
        inputs[need] = manifests.load(upstream).fingerprint
    settings = stage.settings(recipe)
    key = manifests.stage_key(stage.name, stage.version, settings, inputs)
    work = Work(stage.name, folder, key, settings, inputs)
    if (folder / MANIFEST).is_file():
        made = manifests.load(folder)
        if made.key == key:
            manifests.verify(folder, made)
            return Status(
                "done", f"made on {made.finished[:16].replace('T', ' ')} from equal inputs", stage, work, made
            )
        return Status("changed", _differences(made.settings, made.inputs, settings, inputs), stage, work)
    if (folder / BUILDING).is_file():
        try:
            building = json.loads((folder / BUILDING).read_text(encoding="utf-8"))
            if building["key"] == key:
                return Status("continue", "half-done work with equal inputs is here", stage, work)
            why = _differences(building["settings"], building["inputs"], settings, inputs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / BUILDING}: damaged ({error}); delete {folder} and run stage {stage.name} again"
            ) from None
        return Status("changed", why, stage, work)
    return Status("new", "not made yet", stage, work)


def prepare(recipe: Recipe, found: Status) -> list[str]:
    """Make a stage's folder ready for `run`; what another recipe made there is kept under previous/.

    Returns lines that tell the person what was done.
    """
    work = found.work
    told: list[str] = []
    if found.state == "changed" and not _holds_work(work.folder):
        shutil.rmtree(work.folder)  # an attempt that ended before it made anything
    elif found.state == "changed":
        old = _kept_name(recipe.workdir / "previous", work.stage)
        old.parent.mkdir(parents=True, exist_ok=True)
        work.folder.rename(old)
        told.append(
            f"{work.stage}: {found.why}; what was made before is kept in {old} "
            f"(to go back to it: the earlier settings, and `mv` it to {work.folder})"
        )
    work.folder.mkdir(parents=True, exist_ok=True)
    if found.state != "continue":
        write_json(work.folder / BUILDING, {"key": work.key, "settings": work.settings, "inputs": work.inputs})
    return told


def load_stage(stage: Stage) -> Callable[[Recipe, Work, Tracker], Manifest]:
    """Import the stage's `run`."""
    run: Callable[[Recipe, Work, Tracker], Manifest] = importlib.import_module(stage.module).run
    return run


def _stage(recipe: Recipe, name: str) -> Stage:
    found = stages(recipe)
    if name not in found:
        raise RecipeError(f"{name}: not a stage of recipe {recipe.name}; its stages are {', '.join(found)}")
    return found[name]


def _holds_work(folder: Path) -> bool:
    return any(path.is_file() and path.name != BUILDING for path in folder.rglob("*"))


def _kept_name(folder: Path, stage: str) -> Path:
    number = 1
    while (folder / f"{stage}-{number}").exists():
        number += 1
    return folder / f"{stage}-{number}"


def _differences(old: Settings, old_inputs: dict[str, str], new: Settings, new_inputs: dict[str, str]) -> str:
    """Why a stage runs again, in words: the first settings that differ, and the inputs that are new."""
    before, after = _flat(old), _flat(new)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    words = [f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in changed[:3]]
    if len(changed) > 3:
        words.append(f"and {len(changed) - 3} more settings")
    words += [
        f"{name} changed" for name in {**old_inputs, **new_inputs} if old_inputs.get(name) != new_inputs.get(name)
    ]
    return ", ".join(words) or "the code of the stage changed"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in items for key, item in part.items()}
    return {prefix: json.loads(json.dumps(value))}

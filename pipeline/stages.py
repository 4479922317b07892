"""The stages, and what each depends on; stage_state.py says what is to be done with one.

A stage is a module with `run(recipe, work, tracker) -> Manifest`. It is imported only when there is work to do, so
that a run whose stages are all done says so within seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, RecipeError
from pipeline.files import fingerprint, sha256_file
from pipeline.manifest import Manifest, Work
from pipeline.recipe import Corpus, Recipe
from pipeline.tracking import Tracker

Settings = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One arrow of the data's journey.

    name: as typed (`shard`; `finetune.<task>` for each task). folder: under workdir. needs: stages whose manifests it
    reads. module: where `run` lives. settings: the part of the recipe that decides what it makes. version: raised
    when the code makes something else from the same input. trains: it runs on every rank of a launcher. chooses: it
    only takes the best of what others trained, and starts no ranks.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    module: str
    settings: Callable[[Recipe], Settings]
    version: int = 1
    trains: bool = False
    chooses: bool = False
    sources: Callable[[Recipe], dict[str, str]] = lambda recipe: {}


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe, in the order in which they run."""
    seed = {"seed": recipe.seed}
    text = () if recipe.only_imports else ("shard",)  # who brings tokens needs no text
    pretraining = [
        Stage(
            "shard",
            "text",
            (),
            "pipeline.corpus.shard",
            _shard_settings,
            version=4 if recipe.corpus.near_duplicates else 3,  # the rest is as it was
            sources=_source_fingerprints,
        ),
        Stage(
            "tokenizer",
            "tokenizer",
            text,
            "pipeline.tokens.train_tokenizer",
            lambda r: r.tokenizer.settings(),
            sources=_tokenizer_fingerprint,
        ),
        Stage(
            "tokenize",
            "tokens",
            (*text, "tokenizer"),
            "pipeline.tokens.tokenize",
            lambda r: r.tokenize.settings() | (seed if r.tokenize.shuffle else {}),
            version=5,
            sources=_import_fingerprints,
        ),
        Stage(
            "pretrain",
            "checkpoints",
            ("tokenizer", *(() if recipe.pretrain.tokens_from else ("tokenize",))),
            "pipeline.train.pretrain",
            lambda r: {"model": r.model.settings(), "pretrain": r.pretrain.settings()} | _mix(r) | seed,
            trains=True,
            sources=_pretrain_fingerprints,
        ),
        Stage(
            "export",
            "model",
            ("tokenizer", "pretrain"),
            "pipeline.model.export",
            lambda r: {"export": r.export.settings(), "model": r.model.settings()},
            version=2,
        ),
    ]
    found = [] if recipe.only_finetunes else pretraining[0 if text else 1 :]
    pretrained = () if recipe.only_finetunes else (*(text or ("tokenize",)), "export")
    for name, task in recipe.finetune.items():
        made_from_text = ("shard",) if task.reads_text else ()
        *combinations, _ = recipe.trainings(name)
        found += [
            Stage(
                f"finetune.{one}",
                f"finetune/{one}",
                (*made_from_text, *(() if task.base else ("export",))),
                "pipeline.train.finetune",
                lambda r, one=one: r.task(one).settings() | seed,  # type: ignore[misc]
                trains=True,
                sources=lambda r, one=one: _finetune_fingerprints(r, one),  # type: ignore[misc]
            )
            for one in combinations or [name]
        ]
        if combinations:
            found.append(
                Stage(
                    f"finetune.{name}",
                    f"finetune/{name}",
                    tuple(f"finetune.{one}" for one in combinations),
                    "pipeline.train.grid",
                    lambda r, name=name: r.task(name).settings() | seed,  # type: ignore[misc]
                    trains=True,
                    chooses=True,
                )
            )
    found.append(
        Stage(
            "evaluate",
            "evaluation",
            (*pretrained, *(f"finetune.{name}" for name in recipe.finetune)),
            "pipeline.evaluate.evaluate",
            lambda r: r.evaluate.settings() | seed,
            version=3,
        )
    )
    if recipe.evaluate.harness.tasks:
        if recipe.only_finetunes:
            raise RecipeError(
                f"evaluate.harness.tasks: the harness measures the language model that a recipe pretrains, and "
                f"{recipe.name} pretrains none; take them out"
            )
        found.append(
            Stage(
                "harness",
                "harness",
                ("export",),
                "pipeline.evaluate.harness",
                lambda r: r.evaluate.harness.settings() | seed,
                sources=_harness_fingerprints,
            )
        )
    return {stage.name: stage for stage in found}


def named_stage(recipe: Recipe, name: str) -> Stage:
    """One of the stages. Raises: RecipeError when the recipe has none of that name."""
    found = stages(recipe)
    if name not in found:
        raise RecipeError(f"{name}: not a stage of recipe {recipe.name}; its stages are {', '.join(found)}")
    return found[name]


def load_stage(stage: Stage) -> Callable[[Recipe, Work, Tracker], Manifest]:
    """Import the stage's `run`."""
    run: Callable[[Recipe, Work, Tracker], Manifest] = importlib.import_module(stage.module).run
    return run


def _shard_settings(recipe: Recipe) -> Settings:
    """All of `corpus` but the mix, which only the training stream reads."""
    settings = recipe.corpus.settings()
    del settings["mix"]
    mixed = ("weight", "max_share")
    sources = [{name: value for name, value in one.items() if name not in mixed} for one in settings["sources"]]
    return settings | {"sources": sources}


def _mix(recipe: Recipe) -> Settings:
    """What decides the mix of sources in training."""
    weights = {source.name: source.weight for source in (*recipe.corpus.sources, *recipe.tokenize.imports)}
    caps = {source.name: source.max_share for source in recipe.corpus.sources if source.max_share is not None}
    mix = {"max_share": caps} if caps else {}
    if recipe.corpus.mix.temperature != 1.0:
        mix |= recipe.corpus.mix.settings()
    return {"weights": weights} | ({"mix": mix} if mix else {})


def _source_fingerprints(recipe: Recipe) -> dict[str, str]:
    from pipeline.corpus.sources import source_fingerprint

    if not recipe.corpus.sources:  # told before what another recipe made is set aside
        raise DataError("corpus.sources is empty; name at least one source of text in the recipe")
    found = {f"source:{source.name}": source_fingerprint(source) for source in recipe.corpus.sources}
    return found | _named_files(recipe.corpus)


def _named_files(corpus: Corpus) -> dict[str, str]:
    """The content of files that the rules and evaluation sets of a recipe name."""
    lists = corpus.rules.lists
    named = {f"list:{key}": path for key in ("blocked_urls", "bad_words") if lists and (path := getattr(lists, key))}
    named |= {f"language:{path}": path for path in corpus.rules.language_files}
    found = {}
    for label, path in named.items():
        try:
            found[label] = sha256_file(Path(path))[:32]
        except OSError as error:
            raise RecipeError(
                f"corpus.rules: {label.replace(':', ' ')}: {path}: cannot be read: {error.strerror or error}"
            ) from None
    if corpus.decontaminate:
        from pipeline.corpus.decontamination.items import set_fingerprint

        found |= {f"evaluation:{one.name}": set_fingerprint(one) for one in corpus.decontaminate.sets}
    return found


def _tokenizer_fingerprint(recipe: Recipe) -> dict[str, str]:
    return {"tokenizer:path": _folder_fingerprint(Path(recipe.tokenizer.given))} if recipe.tokenizer.given else {}


def _import_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Names, sizes and times of the token files of other programs."""
    from pipeline.tokens.imports.files import import_fingerprint

    return {f"import:{one.name}": import_fingerprint(one) for one in recipe.tokenize.imports}


def _pretrain_fingerprints(recipe: Recipe) -> dict[str, str]:
    base, place = recipe.model.base, recipe.pretrain.tokens_from
    found = {"base": _folder_fingerprint(Path(base))} if base else {}
    if place is None:
        return found
    from pipeline.tokens.cache import index_fingerprint

    return found | {"tokens_from": index_fingerprint(place)}


def _finetune_fingerprints(recipe: Recipe, name: str) -> dict[str, str]:
    from pipeline.corpus.locations import path_fingerprint
    from pipeline.model.hub import is_hub_name

    task = recipe.task(name)
    files = {"train_files": task.train_files, "validation_files": task.validation_files}
    read = path_fingerprint if task.data != "datasets" else str  # a data set is known by its name
    found = {label: read(pattern) for label, pattern in files.items() if pattern}
    if task.base and not is_hub_name(task.base):
        found["base"] = _folder_fingerprint(Path(task.base))
    return found


def _harness_fingerprints(recipe: Recipe) -> dict[str, str]:
    files = [task for task in recipe.evaluate.harness.tasks if task.endswith((".yaml", ".yml"))]
    if missing := [task for task in files if not Path(task).is_file()]:
        raise RecipeError(f"evaluate.harness.tasks: {missing[0]}: no such file; give the path of a task of the harness")
    return {f"task:{task}": sha256_file(Path(task))[:32] for task in files}


def _folder_fingerprint(folder: Path) -> str:
    """Names, sizes and times of the files of a model directory, which is read as a whole."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder that holds a model or tokenizer.json")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])

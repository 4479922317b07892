"""What would happen to a stage now, and how its folder is made ready: skip, continue, or set aside and begin."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.manifest import BUILDING, MANIFEST, Manifest, Work
from pipeline.recipe import Recipe
from pipeline.spool import Spool
from pipeline.stages import Settings, Stage, named_stage

_LONGEST_VALUE = 200  # characters


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
    stage = named_stage(recipe, name)
    folder = recipe.workdir / stage.folder
    inputs = stage.sources(recipe)
    for need in stage.needs:
        upstream = recipe.workdir / named_stage(recipe, need).folder
        if not (upstream / MANIFEST).is_file():
            raise DataError(
                f"{name}: needs {upstream}, which stage {need} makes; run `pipeline {need.split('.')[0]}` first, "
                "or `pipeline run` for all stages"
            )
        inputs[need] = manifests.load(upstream).fingerprint
    settings = stage.settings(recipe)
    key = manifests.stage_key(stage.name, stage.version, settings, inputs)
    work = Work(stage.name, folder, key, settings, inputs)
    # Read before the manifest is looked for: whoever finishes the stage meanwhile writes that, and then deletes this.
    begun = _begun(folder)
    if (folder / MANIFEST).is_file():
        made = manifests.load(folder)
        if made.key == key:
            manifests.verify(folder, made)
            return Status(
                "done", f"made on {made.finished[:16].replace('T', ' ')} from equal inputs", stage, work, made
            )
        return Status("changed", _differences(made.settings, made.inputs, settings, inputs), stage, work)
    if begun is not None:
        try:
            building = json.loads(begun)
            if building["key"] == key:
                return Status("continue", "half-done work with equal inputs is here", stage, work)
            if building["inputs"] == inputs and _adds_phases(building["settings"], settings):
                return Status("continue", "half-done work is here, and the recipe adds a phase to it", stage, work)
            why = _differences(building["settings"], building["inputs"], settings, inputs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / BUILDING}: damaged ({error}); delete {folder} and run stage {stage.name} again"
            ) from None
        return Status("changed", why, stage, work)
    return Status("new", "not made yet", stage, work)


def _begun(folder: Path) -> bytes | None:
    """What says by which recipe half-done work was begun; None where there is none, or it is just being moved away."""
    try:
        return (folder / BUILDING).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def prepare(recipe: Recipe, found: Status) -> list[str]:
    """Make a stage's folder ready for `run`; what another recipe made there is kept under previous/.

    Returns lines that tell the person what was done.
    """
    work = found.work
    told = _set_aside(recipe, found)
    work.folder.mkdir(parents=True, exist_ok=True)
    if _key_of(work.folder) != work.key:
        write_json(work.folder / BUILDING, {"key": work.key, "settings": work.settings, "inputs": work.inputs})
    return told


def kept_work(recipe: Recipe, found: Status) -> Path | None:
    """The folder under previous/ that was made with the very settings and inputs that a stage has now."""
    kept = recipe.workdir / "previous"
    if found.state not in ("changed", "new") or not kept.is_dir():
        return None
    mine = [path for path in kept.iterdir() if re.fullmatch(re.escape(found.work.stage) + r"-\d+", path.name)]
    fitting = [path for path in mine if _key_of(path) == found.work.key]
    # What is done before what is half done; then what was set aside last.
    return max(fitting, key=lambda path: ((path / MANIFEST).is_file(), int(path.name.rpartition("-")[2])), default=None)


def take_back(recipe: Recipe, found: Status) -> list[str]:
    """Where the settings of earlier work are back, put it in its place again, with its numbers; else do nothing.

    The folder's status is another one then. Returns lines that tell the person what was done.
    """
    work = found.work
    old = kept_work(recipe, found)
    if old is None:
        return []
    told = _set_aside(recipe, found)
    # The journals first: a kill before the folder is renamed leaves work that is taken back again.
    Spool(recipe.workdir / "logs", work.stage).take_back(work.key)
    work.folder.parent.mkdir(parents=True, exist_ok=True)
    old.rename(work.folder)
    return [*told, f"{work.stage}: the settings of {old} are back, and so is what was made with them"]


def holds_work(folder: Path) -> bool:
    """Whether anything was made in a stage's folder."""
    return any(path.is_file() and path.name != BUILDING for path in folder.rglob("*"))


def _set_aside(recipe: Recipe, found: Status) -> list[str]:
    """Move what other settings made to previous/. Returns what to tell."""
    work = found.work
    if found.state != "changed":
        return []
    if not holds_work(work.folder):
        shutil.rmtree(work.folder)  # an attempt that ended before it made anything
        return []
    old = _kept_name(recipe.workdir / "previous", work.stage)
    old.parent.mkdir(parents=True, exist_ok=True)
    work.folder.rename(old)
    return [f"{work.stage}: {found.why}; what was made before is kept in {old} (the earlier settings bring it back)"]


def _key_of(folder: Path) -> str | None:
    """The key of done or half-done work; None where nobody can tell."""
    for name in (MANIFEST, BUILDING):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads((folder / name).read_text(encoding="utf-8"))["key"])
    return None


def _kept_name(folder: Path, stage: str) -> Path:
    number = 1
    while (folder / f"{stage}-{number}").exists():
        number += 1
    return folder / f"{stage}-{number}"


def _adds_phases(old: Settings, new: Settings) -> bool:
    """Whether all that is new are phases of pretraining after those that there were."""
    before, after = (json.loads(json.dumps(value)) for value in (old, new))
    if "phases" not in before.get("pretrain", {}) or "phases" not in after.get("pretrain", {}):
        return False
    earlier, now = before["pretrain"].pop("phases"), after["pretrain"].pop("phases")
    return bool(before == after and len(now) > len(earlier) and now[: len(earlier)] == earlier)


def _differences(old: Settings, old_inputs: dict[str, str], new: Settings, new_inputs: dict[str, str]) -> str:
    """Why a stage runs again, in words: the first settings that differ, and the inputs that are new."""
    before, after = _flat(old), _flat(new)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    words = [f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}" for key in changed[:3]]
    if len(changed) > 3:
        words.append(f"and {len(changed) - 3} more settings")
    words += [
        f"{name} changed" for name in {**old_inputs, **new_inputs} if old_inputs.get(name) != new_inputs.get(name)
    ]
    return ", ".join(words) or "the code of the stage changed"


def _short(value: Any) -> str:
    """A setting's value in a message; a location may hold a password."""
    from pipeline.corpus.locations import shown

    told = shown(repr(value))
    return told if len(told) <= _LONGEST_VALUE else told[:_LONGEST_VALUE] + "…"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their path; those of things in a list by the things' names, where they have any."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {str(item["name"]): item for item in value} | {"(order)": [item["name"] for item in value]}
    if isinstance(value, dict) and value:
        items = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in items for key, item in part.items()}
    return {prefix: json.loads(json.dumps(value))}

"""Checkpoints that are whole or not there: `step-000000123/`, written beside and renamed, verified before use.

A checkpoint holds DeepSpeed's files (`state/`), each rank's random state (`random-<rank>.pt`) and `checkpoint.json`:
step, world size, ZeRO stage, fingerprint, and every file's size and SHA-256.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError
from pipeline.files import TEMPORARY, disk_errors, sha256_file, sync_directory, sync_file, write_json
from pipeline.progress import log
from pipeline.train import engine as deepspeed_engine
from pipeline.train.collective import gather, wait_for_all

DESCRIPTION = "checkpoint.json"
_NAME = re.compile(r"step-(\d{9})$")


@dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says. step: optimizer steps done; fingerprint: of data and settings; layout: order of the
    weights in DeepSpeed's buffers; dtype: in which the model computed; files: path → [bytes, sha256]."""

    step: int
    fingerprint: str
    world_size: int
    zero_stage: int
    dtype: str
    layout: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    format: int = 1


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:09d}"


def save(engine: Any, folder: Path, ranks: Ranks, about: Checkpoint) -> Path:
    """Write a checkpoint from all ranks together, and commit it by one rename. `about` says what it is of.

    Raises: EnvironmentFault when the disk is full; what was saved before is still whole.
    """
    final = path_of(folder, about.step)
    temporary = final.with_name(final.name + TEMPORARY)
    with disk_errors(final):
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait_for_all()
        engine.save_checkpoint(str(temporary), tag=deepspeed_engine.STATE, save_latest=False)
        torch.save(_random_state(), temporary / f"random-{ranks.rank:05d}.pt")
        wait_for_all()
        # Each rank syncs and checksums its share of the files, so that a large checkpoint is not read by one alone.
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        mine: dict[str, tuple[int, str]] = {}
        for path in files[ranks.rank :: ranks.world_size]:
            sync_file(path)
            mine[path.relative_to(temporary).as_posix()] = (path.stat().st_size, sha256_file(path))
        described = {name: value for part in gather(mine) for name, value in part.items()}
        if ranks.first:
            write_json(temporary / DESCRIPTION, asdict(about) | {"files": dict(sorted(described.items()))})
            for directory in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
                sync_directory(directory)
            if final.exists():
                shutil.rmtree(final)  # damaged, and passed over when this run was resumed from an older one
            temporary.rename(final)
            sync_directory(folder)
        wait_for_all()
    return final


def describe(path: Path) -> Checkpoint:
    """Read checkpoint.json and check every file against it.

    Raises: DataError naming the first thing that is wrong.
    """
    try:
        value = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        found = Checkpoint(**value | {"files": {name: tuple(item) for name, item in value["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path / DESCRIPTION}: cannot be read ({error})") from None
    for name, (size, digest) in found.files.items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file}: missing")
        if file.stat().st_size != size:
            raise DataError(f"{file}: {file.stat().st_size:,} bytes, should be {size:,}")
        if sha256_file(file) != digest:
            raise DataError(f"{file}: its checksum differs")
    return found


def every(folder: Path) -> list[Path]:
    """All committed checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.search(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name)


def latest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that is whole; damaged ones are passed over, with a line that says so."""
    for path in reversed(every(folder)):
        try:
            return path, describe(path)
        except DataError as error:
            log.warning(f"checkpoint {path.name} is damaged and passed over: {error}")
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed save left behind."""
    for path in folder.glob(f"step-*{TEMPORARY}"):
        shutil.rmtree(path)
    for path in every(folder)[:-keep]:
        # Renamed first: a kill in the middle of the deletion must not leave a damaged checkpoint behind.
        doomed = path.with_name(path.name + TEMPORARY)
        path.rename(doomed)
        shutil.rmtree(doomed)


def load(engine: Any, path: Path, ranks: Ranks) -> None:
    """Put a checkpoint of the same world size and ZeRO stage into the engine, and this rank's random state."""
    loaded, _ = engine.load_checkpoint(str(path), tag=deepspeed_engine.STATE)
    if loaded is None:
        raise DataError(f"{path}: DeepSpeed cannot load it; delete it to continue from the one before")
    state = torch.load(path / f"random-{ranks.rank:05d}.pt", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def consolidated_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint by parameter name, on the CPU; a tied weight appears under each of its names.

    Raises: DataError when the checkpoint is damaged.
    """
    return deepspeed_engine.fp32_weights(checkpoint, describe(checkpoint).zero_stage)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state

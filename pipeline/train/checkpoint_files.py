"""The folder of checkpoints on disk: which are whole, which is the newest, which are kept, what weights they hold.

    step-000000123/
      checkpoint.json               what it is of; every file's size and checksum (XXH3, 128 bits); written last
      index.json                    parameter → shape, scalars, where each fragment lies
      rank-00000-000.safetensors    the fragments that this rank owned, and its random state
    latest                          name of the newest, for people and tools

A checkpoint is written as `step-000000123.<token>.tmp` and committed by one rename.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster.ranks import ALONE, Ranks
from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, own_temporary
from pipeline.progress import log
from pipeline.train.collective import broadcast, gather
from pipeline.train.fragments import WEIGHT
from pipeline.train.history import FILE as HISTORY
from pipeline.train.tensor_files import Ranges, bytes_of, checksum_file, write_tensors

DESCRIPTION = "checkpoint.json"
INDEX = "index.json"
POINTER = "latest"
FORMAT = 3
RANDOM = "random/"  # in an index: the random state of a rank, beside the parameters
_NAME = re.compile(r"step-(\d{9})$")


@dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says. step: optimizer steps done; fingerprint: of data and settings; dtype: in which the
    model computed; files: path → [bytes, checksum]; state: the loop's own, JSON; engine: DeepSpeed's counters."""

    step: int
    fingerprint: str
    world_size: int
    zero_stage: int
    dtype: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:09d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def every(folder: Path) -> list[Path]:
    """All committed checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.search(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name)


def read_description(path: Path) -> Checkpoint:
    """Read checkpoint.json. Raises: DataError when it cannot be read or is of another format."""
    try:
        value = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        if value["format"] == FORMAT:
            return Checkpoint(**value | {"files": {name: tuple(item) for name, item in value["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path / DESCRIPTION}: cannot be read ({error})") from None
    raise DataError(
        f"{path}: made by another version of this program (format {value['format']}, here {FORMAT}); "
        f"move {path.parent} away to begin anew, or use the version that made it"
    )


def describe(path: Path, ranks: Ranks = ALONE) -> Checkpoint:
    """Read checkpoint.json and check the files against it: all sizes, and the content of this rank's share of them.

    Raises: DataError naming the first thing that is wrong.
    """
    found = read_description(path)
    for name, (size, _) in found.files.items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file}: missing")
        if file.stat().st_size != size:
            raise DataError(f"{file}: {file.stat().st_size:,} bytes, should be {size:,}")
    for name, (_, digest) in list(found.files.items())[ranks.rank :: ranks.world_size]:
        try:
            differs = checksum_file(path / name) != digest
        except OSError as error:
            raise DataError(f"{path / name}: cannot be read ({error})") from None
        if differs:
            raise DataError(f"{path / name}: its checksum differs")
    return found


def latest(folder: Path, ranks: Ranks = ALONE) -> tuple[Path, Checkpoint, list[str]] | None:
    """The newest checkpoint that is whole, and what is wrong with those passed over. All ranks together: each reads
    its share of the files.

    Raises: DataError when there are checkpoints and none is whole.
    """
    names = broadcast([path.name for path in every(folder)] if ranks.first else [])
    wrong: list[str] = []
    for name in reversed(names):
        path, found, problem = folder / name, None, ""
        try:
            found = describe(path, ranks)
        except (DataError, OSError) as error:  # on this rank perhaps alone: the others wait in `gather`
            problem = str(error)
        problem = next((text for text in gather(problem) if text), "")
        if found is not None and not problem:
            return path, found, wrong
        wrong.append(problem)
        if ranks.first:
            log.warning(f"checkpoint {name} is damaged and passed over: {problem}")
    if wrong:
        raise DataError(
            f"{folder}: no checkpoint is whole, the newest one: {wrong[0]}; restore one from a backup, or move the "
            "folder away to begin anew"
        )
    return None


def sweep(folder: Path, token: str = "") -> None:
    """Delete what killed saves left behind. token: of this start, whose temporary folders stay."""
    for path in folder.glob(f"*{TEMPORARY}"):
        if path.is_dir():
            if not token or f".{token}." not in path.name:
                shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith((POINTER, HISTORY)):
            path.unlink(missing_ok=True)


def prune(
    folder: Path,
    keep: int,
    keep_every: int = 0,
    newest: int | None = None,
    token: str = "",
    fence: Callable[[], None] = lambda: None,
    best: int | None = None,
) -> None:
    """Delete all but the `keep` newest checkpoints and the first after each multiple of `keep_every` steps, and what
    a killed save left behind.

    newest: step of the one just committed: later ones are damaged, or of a history that was left by a roll-back.
    token: of this start, whose temporary folders stay. fence: called before each is deleted, for a ghost that was
    stopped in here must not delete those of its successor. best: step of one that stays too.
    """
    fence()
    sweep(folder, token)
    found = every(folder)
    left = [path for path in found if newest is not None and step_of(path) > newest]
    found = found[: len(found) - len(left)]
    for path in (
        *left,
        *(path for path in found[:-keep] if path not in _for_good(found, keep_every) and step_of(path) != best),
    ):
        fence()
        discard(path)


def discard(path: Path) -> None:
    """Delete a checkpoint. Renamed first: a kill in the middle must not leave a damaged one behind.

    What cannot be deleted now (a file server keeps files that are open) goes with the next sweep.
    """
    doomed = own_temporary(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _for_good(found: Sequence[Path], keep_every: int) -> set[Path]:
    """The first checkpoint at or after each multiple of `keep_every`."""
    if not keep_every:
        return set()
    chosen, before = set(), 0
    for path in found:
        if step_of(path) // keep_every > before // keep_every:
            chosen.add(path)
        before = step_of(path)
    return chosen


def index_of(
    shapes: Mapping[str, Sequence[int]], scalars: Mapping[str, Mapping[str, float]], fragments: Iterable[list[Any]]
) -> dict[str, Any]:
    """What index.json says, from the fragments ([name, state, offset, length, file, type]) that all ranks wrote.

    Raises: PipelineError when a part of a parameter was written by nobody, or twice: DeepSpeed has changed.
    """
    index: dict[str, Any] = {
        name: {"shape": list(shape), "scalars": dict(scalars.get(name, {})), "states": {}}
        for name, shape in shapes.items()
    }
    for name, state, offset, length, file, kind in fragments:
        known = index.setdefault(name, {"shape": [length], "scalars": {}, "states": {}})
        known["states"].setdefault(state, []).append([offset, length, file, kind])
    for name, known in index.items():
        if name in shapes and WEIGHT not in known["states"]:
            raise PipelineError(f"checkpoint: no rank has written {name}")
        for state, found in known["states"].items():
            written = sum(length for _, length, *_ in found)
            if name in shapes and written != math.prod(shapes[name]):
                raise PipelineError(
                    f"checkpoint: of {state} of {name}, {math.prod(shapes[name]):,} elements, {written:,} were written"
                )
    return index


def open_ranges(path: Path) -> Ranges:
    """The reader of a checkpoint's fragments. Raises: DataError when its index cannot be read."""
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / INDEX}: cannot be read ({error})") from None
    return Ranges(path, index)


def parameters_of(ranges: Ranges) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Name → type and shape of every weight and stored buffer, in the model's order."""
    return {
        name: (ranges.kinds([name])[WEIGHT], list(known["shape"]))
        for name, known in ranges.index.items()
        if not name.startswith(RANDOM)
    }


def weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint, in fp32 on the CPU, one at a time; a tied weight once, under its first name."""
    return _whole(open_ranges(path))


def _whole(ranges: Ranges) -> Iterator[tuple[str, Tensor]]:
    for name, (kind, shape) in parameters_of(ranges).items():
        whole = torch.empty(shape, dtype=torch.float32 if kind.is_floating_point else kind)
        ranges.read(name, WEIGHT, 0, whole.view(-1))
        yield name, whole
    ranges.close()


def write_weights(path: Path, file: Path) -> None:
    """Write the weights of a checkpoint to one safetensors file, holding one parameter at a time."""
    ranges = open_ranges(path)
    described = [
        (name, torch.float32 if kind.is_floating_point else kind, shape)
        for name, (kind, shape) in parameters_of(ranges).items()
    ]
    write_tensors(file, described, (bytes_of(tensor) for _, tensor in _whole(ranges)))

"""Weights in safetensors, in one file or in shards with an index, read and written one shard at a time at most.

model.safetensors                                    when all fit in one
model-00001-of-00003.safetensors …                   else, and
model.safetensors.index.json                         {"metadata": {"total_size"}, "weight_map": {name: file}}
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_M_MMAP_THRESHOLD = -3  # as glibc's malloc.h numbers it


class WeightFiles:
    """The weights of a folder, or of one file, by name. Nothing stays in memory between two reads."""

    def __init__(self, path: Path) -> None:
        """path: a safetensors file, or a model directory. Raises: DataError naming the file that cannot be read."""
        self.path = path
        self.files = {path} if path.is_file() else {path / name for name in _shards(path)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file: dict[str, Path] = {}
        for file in sorted(self.files):
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  no mapping
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
                        self._file[name] = file
            except (OSError, SafetensorError) as error:
                raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None

    @property
    def parameters(self) -> int:
        """Number of all weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def read(self, name: str, first: int = 0, rows: int | None = None) -> Tensor:
        """A copy of a weight in the type that it has there, or of `rows` of its rows from `first`.

        Raises: DataError for a name that is not there.
        """
        if name not in self._file:
            raise DataError(f"{self.path}: the weight {name} is missing; copy the whole model directory")
        # Opened anew each time: pages of a mapped file count as this process's memory until it is closed.
        with safe_open(self._file[name], "pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return (found if rows is None else found[first : first + rows]).clone()


def return_freed_memory() -> None:
    """Let glibc give the memory of each freed weight back at once; elsewhere nothing is changed.

    By itself it keeps freed pieces of up to 32 MiB for later, and layers that come and go leave gaps among them: the
    process grows by two thirds of the model, however few weights are held at a time (mallopt(3), M_MMAP_THRESHOLD).
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def _shards(folder: Path) -> set[str]:
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return {SINGLE}
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: cannot be read ({error})") from None
    if outside := [name for name in names if Path(str(name)).name != name]:
        raise DataError(f"{index}: {outside[0]} lies in another folder; only files beside the index are read")
    return names


def write_shards(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    """Write weights into `folder` in `dtype`, in the order of `shapes`, in files of at most `shard_bytes` of weights
    (a weight that is larger has a file of its own). read: gives a weight by name; it is asked for one at a time, and
    one shard is held in memory.

    Raises: DataError for a weight that holds NaN or infinity.
    """
    plan: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        size = dtype.itemsize * math.prod(shape)
        if size > room and plan[-1]:
            plan.append([])
            room = shard_bytes
        plan[-1].append(name)
        room -= size
    files: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        file = SINGLE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        shard = {}
        for name in names:
            weight = read(name)
            if not bool(torch.isfinite(weight).all()):
                raise DataError(f"{name} holds NaN or infinity; training diverged")
            shard[name] = weight.to(dtype).contiguous()
            del weight
        save_file(shard, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    if len(plan) > 1:
        total = sum(dtype.itemsize * math.prod(shape) for shape in shapes.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))})

"""safetensors files, written straight from memory and read by ranges.

The library's own writer copies every tensor first, and the file would be read again for its checksum; here the bytes
go from a host buffer to the disk once, and are summed on the way. Format: 8 bytes length of the header, JSON header,
data without gaps (https://huggingface.co/docs/safetensors). It is read with the library.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import DataError
from pipeline.train.direct_file import BLOCK, DirectFile

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, described: Sequence[tuple[str, torch.dtype, Sequence[int]]], data: Iterable[memoryview]
) -> tuple[int, str]:
    """Write `path` and sync it. described: name, type, shape; data: their bytes in the same order, cut anywhere.

    Returns its size and checksum. Raises: OSError when the disk is full.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, kind, shape in described:
        start, end = end, end + kind.itemsize * math.prod(shape)
        header[name] = {"dtype": TYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with DirectFile(path) as file:
        begin = len(text).to_bytes(8, "little") + text
        digest.update(begin)
        file.write(begin)
        for part in data:
            for place in range(0, len(part), BLOCK):
                block = part[place : place + BLOCK]
                digest.update(block)
                file.write(block)
    if file.size != 8 + len(text) + end:
        raise ValueError(f"{path}: {file.size} bytes were written, its header says {8 + len(text) + end}")
    return file.size, digest.hexdigest()


def checksum_file(path: Path) -> str:
    """Of a file's content, in constant memory: XXH3, 128 bits.

    It finds what disks and people damage; SHA-256, which also resists people who mean to, takes sixteen times as long,
    twice: while the steps wait for the save, and while all ranks wait for the restart.
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


class Ranges:
    """Reads any range of any state of any parameter of a checkpoint, from whatever files hold it.

    index: parameter → {"shape", "scalars", "states": {state: [[offset, length, file, type], …]}}.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self.index = folder, index
        self._sorted = {
            (name, state): sorted(found) for name, known in index.items() for state, found in known["states"].items()
        }
        self._open: dict[str, Any] = {}

    def kinds(self, names: Iterable[str]) -> dict[str, torch.dtype]:
        """The states that any of these parameters has → their types."""
        by_word = {word: kind for kind, word in TYPES.items()}
        return {state: by_word[found[0][3]] for name in names for state, found in self.index[name]["states"].items()}

    def scalars(self, names: Iterable[str]) -> dict[str, float]:
        """The numbers (AdamW's step) that these parameters share."""
        return {key: value for name in names for key, value in self.index[name]["scalars"].items()}

    def read(self, name: str, state: str, offset: int, into: Tensor) -> bool:
        """Fill a 1-D tensor with elements from `offset`. Returns False when the checkpoint has no such state.

        Raises: DataError when the files do not cover the range.
        """
        found = self._sorted.get((name, state))
        if found is None:
            return False
        end, done = offset + into.numel(), offset
        first = max(0, bisect.bisect_right([start for start, *_ in found], offset) - 1)
        for start, length, file, _ in found[first:]:
            if start >= end or done >= end:
                break
            stop = min(end, start + length)
            if start <= done < stop:
                part = self._file(file).get_slice(key(name, state, start))[done - start : stop - start]
                into[done - offset : stop - offset].copy_(part)
                done = stop
        if done != end:
            raise DataError(f"{self.folder}: {state} of {name} is not whole: elements {done} to {end} are nowhere")
        return True

    def close(self) -> None:
        """Forget the open files."""
        self._open.clear()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            if len(self._open) >= 64:
                self._open.clear()
            self._open[name] = safe_open(self.folder / name, "pt", device="cpu")
        return self._open[name]


def key(name: str, state: str, offset: int) -> str:
    """The name of a fragment inside its file."""
    return f"{name}/{state}/{offset}"

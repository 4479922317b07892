"""What one rank must save, copied to host memory at once and written to files later, by a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.train.fragments import Fragment
from pipeline.train.tensor_files import TYPES, bytes_of, key, write_tensors

LARGEST_FILE = 2 << 30  # bytes; a single larger fragment still makes one file


class Snapshot:
    """A host buffer that is kept from save to save: new pages and pinned memory cost more time than the copy."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._held: list[tuple[Fragment, Tensor]] = []

    def take(self, fragments: Sequence[Fragment]) -> int:
        """Copy all fragments; when it returns, training may change them. Returns the number of bytes."""
        # Wider types first: then every fragment is aligned without gaps, which the file format does not allow.
        ordered = sorted(fragments, key=lambda fragment: -fragment.tensor.element_size())
        needed = sum(fragment.tensor.nbytes for fragment in ordered)
        on_gpu = any(fragment.tensor.is_cuda for fragment in ordered)
        self._held = []
        if self._buffer.numel() < needed:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free the old one first: never two
            self._buffer = torch.empty(needed, dtype=torch.uint8, pin_memory=on_gpu)
        start = 0
        for fragment in ordered:
            place = self._buffer[start : start + fragment.tensor.nbytes].view(fragment.tensor.dtype)
            place.copy_(fragment.tensor, non_blocking=True)
            self._held.append((fragment, place))
            start += fragment.tensor.nbytes
        if on_gpu:
            torch.cuda.synchronize()
        return needed

    def write(self, folder: Path, prefix: str) -> tuple[dict[str, tuple[int, str]], list[list[Any]]]:
        """Write `folder`/`prefix`-<number>.safetensors, synced.

        Returns files (name → bytes, checksum) and fragments ([name, state, offset, length, file, type]).
        """
        files: dict[str, tuple[int, str]] = {}
        fragments: list[list[Any]] = []
        for number, group in enumerate(self._files()):
            file = f"{prefix}-{number:03d}.safetensors"
            files[file] = write_tensors(
                folder / file,
                [
                    (key(fragment.name, fragment.state, fragment.offset), place.dtype, [place.numel()])
                    for fragment, place in group
                ],
                (bytes_of(place) for _, place in group),
            )
            fragments += [
                [fragment.name, fragment.state, fragment.offset, place.numel(), file, TYPES[place.dtype]]
                for fragment, place in group
            ]
        return files, fragments

    def _files(self) -> Iterator[list[tuple[Fragment, Tensor]]]:
        group: list[tuple[Fragment, Tensor]] = []
        size = 0
        for fragment, place in self._held:
            if group and size + place.nbytes > LARGEST_FILE:
                yield group
                group, size = [], 0
            group.append((fragment, place))
            size += place.nbytes
        if group:
            yield group

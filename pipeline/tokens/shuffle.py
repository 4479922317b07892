"""Shuffling the documents of a source once, out of core, by a seed: on the disk in two passes.

Each document gets a key, which depends on the seed and its place in the source alone. The first pass writes a *spill*
for each task: its documents in runs of about `member_tokens`, each run sorted by key. The second pass makes the tars:
each reads from all spills of its group the documents whose keys lie in its range, a bucket at a time, and writes them
in the order of their keys. A group is up to GROUP tasks, drawn by the seed from the whole source, so that a tar reads a
bounded number of files: a source of up to GROUP x `shard_tokens` tokens (17 billion by default) is shuffled uniformly,
of a larger one each tar is a uniform draw from GROUP places all over the source.

Memory: about three times `member_tokens` ids, and 24 bytes for each document of a task. Disk: the tokens once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.files import atomic_write, write_json
from pipeline.tokens.permutation import permute
from pipeline.tokens.token_tars import Shard, ShardWriter

GROUP = 64  # spills that one tar reads
KEYS = 1 << 61  # keys are 0 … KEYS-1; no two documents of a source share one
TASK_BITS = 25  # of the place of a document: the rest counts the documents of a task
_KEY, _END, _TEXT = range(3)  # rows of a spill's table: key, exclusive end in the spill (tokens), bytes of text


@dataclass(frozen=True)
class Spill:
    """The documents of one task, half shuffled. runs: the number of the first document of each run, and of all."""

    stem: str
    tokens: int
    runs: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"stem": self.stem, "tokens": self.tokens, "runs": list(self.runs)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Spill:
        return cls(value["stem"], value["tokens"], tuple(value["runs"]))


class SpillWriter:
    """Writes `<stem>.ids` and `<stem>.documents.npy` into a folder; takes documents as ShardWriter does."""

    def __init__(
        self, folder: Path, stem: str, dtype: np.dtype[Any], run_tokens: int, key: tuple[int, str, int]
    ) -> None:
        """key: the seed, the source's name, and the number of the task in it."""
        self.folder, self.stem, self.dtype, self.run_tokens = folder, stem, dtype, run_tokens
        self._seed, self._source, self._task = key
        self._ids: list[npt.NDArray[Any]] = []
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._text: list[npt.NDArray[np.int64]] = []
        self._tables: list[npt.NDArray[np.int64]] = []
        self._runs = [0]
        self._held = self._tokens = 0
        self._out = atomic_write(folder / f"{stem}.ids", own=True)

    def add(self, ids: npt.NDArray[Any], ends: npt.NDArray[np.int64], text_bytes: npt.NDArray[np.int64]) -> None:
        """Append whole documents: their ids, exclusive ends, and bytes of text of each."""
        self._ids.append(ids.astype(self.dtype))
        self._lengths.append(np.diff(ends, prepend=0))
        self._text.append(text_bytes)
        self._held += len(ids)
        if self._held >= self.run_tokens:
            self._end_run()

    def close(self) -> Spill:
        """Finish both files."""
        self._end_run()
        table = np.concatenate([np.empty((3, 0), np.int64), *self._tables], axis=1)
        with atomic_write(self.folder / f"{self.stem}.documents.npy", own=True) as handle:
            np.save(handle, table)
        return Spill(self.stem, self._tokens, tuple(self._runs))

    def __enter__(self) -> SpillWriter:
        self._file = self._out.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.spill = self.close() if error[0] is None else None
        self._out.__exit__(*error)

    def _end_run(self) -> None:
        if not self._lengths:
            return
        ids, lengths = np.concatenate(self._ids), np.concatenate(self._lengths)
        first = self._runs[-1]
        numbers = np.arange(first, first + len(lengths), dtype=np.int64) + (self._task << (61 - TASK_BITS))
        keys = permute(numbers, KEYS, self._seed, self._source, "documents")
        order = np.argsort(keys)
        _write_in_order(self._file, ids, lengths, order)
        ends = self._tokens + np.cumsum(lengths[order])
        self._tables.append(np.stack([keys[order], ends, np.concatenate(self._text)[order]]))
        self._tokens += len(ids)
        self._runs.append(first + len(lengths))
        self._ids, self._lengths, self._text, self._held = [], [], [], 0


@dataclass(frozen=True)
class Tar:
    """One token tar to make of the spills of a group: buckets begin … end-1 of `buckets` equal ranges of keys."""

    source: str
    number: int
    spills: tuple[Spill, ...]
    begin: int
    end: int
    buckets: int
    tokens: int  # about

    def receipt(self, receipts: Path) -> Path:
        return receipts / f"shuffled-{self.source}-{self.number:05d}.json"


def plan_tars(source: str, spills: Sequence[Spill], seed: int, shard_tokens: int, member_tokens: int) -> list[Tar]:
    """The tars of a source: they depend on its spills, the seed and the settings alone."""
    if not spills:
        return []
    drawn = permute(np.arange(len(spills), dtype=np.int64), len(spills), seed, source, "tasks").tolist()
    groups = -(-len(spills) // GROUP)
    found: list[Tar] = []
    for group in range(groups):
        mine = tuple(spills[number] for number in sorted(drawn[group::groups]))
        total = sum(spill.tokens for spill in mine)
        tars = -(-total // shard_tokens)
        each = max(1, round(min(shard_tokens, total) / member_tokens))
        found += [
            Tar(source, len(found) + number, mine, number * each, (number + 1) * each, tars * each, total // tars)
            for number in range(tars)
        ]
    return found


def make_tar(
    tar: Tar, advance: Callable[[int], None], folder: Path, receipts: Path, dtype: np.dtype[Any], member_tokens: int
) -> bool:
    """Spills in, one token tar `train/<source>-<number>-000.tar` and its receipt out.

    Raises: DataError when a spill is missing or was cut.
    """
    stem = f"train/{tar.source}-{tar.number:05d}"
    opened = [_OpenSpill(receipts, spill, dtype) for spill in tar.spills]
    with ShardWriter(folder, stem, dtype, 1 << 62, member_tokens) as writer:
        for bucket in range(tar.begin, tar.end):
            low, high = (edge * KEYS // tar.buckets for edge in (bucket, bucket + 1))
            parts = [part for spill in opened for part in spill.between(low, high)]
            if not parts:
                continue
            keys, lengths, text = (np.concatenate([part[row] for part in parts]) for row in range(3))
            ids = np.concatenate([part[3] for part in parts])
            order = np.argsort(keys)
            ids = np.concatenate(list(_in_order(ids, lengths, order)))
            writer.add(ids, np.cumsum(lengths[order]), int(text.sum()))
            advance(len(ids))
    shards = {"train": [shard.to_json() for shard in writer.shards]}
    write_json(tar.receipt(receipts), {"shards": shards}, own=True)
    return True


def read_tar(tar: Tar, receipts: Path) -> tuple[Shard, ...] | None:
    """The shard made of a group's bucket range (none where no key fell into it); None where it is not made yet."""
    try:
        receipt = json.loads(tar.receipt(receipts).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return tuple(Shard.from_json(shard) for shard in receipt["shards"]["train"])


class _OpenSpill:
    """A spill, mapped for reading."""

    def __init__(self, folder: Path, spill: Spill, dtype: np.dtype[Any]) -> None:
        ids, table = folder / f"{spill.stem}.ids", folder / f"{spill.stem}.documents.npy"
        try:
            whole = ids.stat().st_size == spill.tokens * dtype.itemsize
            self._ids = np.memmap(ids, dtype, "r").view(np.ndarray) if spill.tokens and whole else np.empty(0, dtype)
            self._table = np.load(table, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{ids}: cannot be read ({error}); delete {folder.parent} and tokenize again") from None
        if not whole or self._table.shape != (3, spill.runs[-1]):
            raise DataError(f"{ids}: was cut since it was written; delete {folder.parent} and tokenize again")
        self._runs = spill.runs

    def between(self, low: int, high: int) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        """Of each run the documents whose keys are low … high-1: keys, lengths, bytes of text, and all their ids."""
        for start, stop in zip(self._runs[:-1], self._runs[1:], strict=True):
            first, last = (start + np.searchsorted(self._table[_KEY, start:stop], (low, high))).tolist()
            if first == last:
                continue
            ends = self._table[_END, first:last]
            begin = int(self._table[_END, first - 1]) if first else 0
            ids = self._ids[begin : int(ends[-1])]
            yield self._table[_KEY, first:last], np.diff(ends, prepend=begin), self._table[_TEXT, first:last], ids


def _in_order(
    ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[Any]]:
    """The ids of each document, in the given order of the documents."""
    ends = np.cumsum(lengths)
    for start, end in zip((ends - lengths)[order].tolist(), ends[order].tolist(), strict=True):
        yield ids[start:end]


def _write_in_order(handle: Any, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], order: Any) -> None:
    for document in _in_order(ids, lengths, order):
        handle.write(document)

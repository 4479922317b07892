"""Plain text to the base's own tokens, for more pretraining: token tars beside the task, read as pretraining reads its.

Documents come from text tars (this run's, or another's) or from rows with a `text`. Each file of them, or data set of
`datasets`, has a receipt, so that a killed start goes on with the next; the bytes depend on the documents alone. A
special token's name in a document is text. Memory: a few megabytes of text, and the encoder's cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.document import utf8_bytes
from pipeline.corpus.locations import Item, find_files
from pipeline.corpus.text_tars import Part, read_text_tar, text_tars
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.progress import log, progress
from pipeline.recipe import FinetuneTask
from pipeline.tokens.encode import SLOW, Encoder, with_end_of_text
from pipeline.tokens.token_tars import (
    INDEX,
    Index,
    Shard,
    ShardWriter,
    read_index,
    remove_strays,
    remove_temporary,
    token_dtype,
)
from pipeline.tokens.token_tars import write_index as commit_index
from pipeline.train.example import hash_of
from pipeline.train.example_files import SUFFIXES, dataset_rows, rows_of

PARTS: tuple[Part, ...] = ("train", "validation")
SOURCE = "text"
RECEIPTS = "tasks"
BATCH_CHARACTERS = 4 << 20
SHARD_TOKENS, MEMBER_TOKENS = 64 << 20, 4 << 20


@dataclass(frozen=True)
class File:
    """A file of documents. path: or the name of a data set; part: of all of them; None: by the hash of each; bytes: as
    stored, 0 of a data set."""

    path: Path
    part: Part | None
    bytes: int = 0


def prepare(task: FinetuneTask, name: str, text: Path, folder: Path, base: Path) -> Index:
    """Make `folder` (a tokens folder) of the task's documents, or go on to; returns its index.

    Args: name, of the task, for messages; text, the run's text tars; base, whose tokenizer encodes.
    Raises: DataError naming the file, or what the data lack.
    """
    if not (folder / INDEX).is_file():
        files = _files(task, name, text)
        held_out = _held_out(task, files)
        remove_temporary(folder)
        receipts = _encode_all(task, files, held_out, folder, base)
        while receipts is None:
            log.warning(
                f"finetune.{name}: the fast encoder gave other ids than tokenizers; all is encoded with tokenizers"
            )
            receipts = _encode_all(task, files, held_out, folder, base)
        _commit(receipts, name, task, folder, Encoder.open(base, fast=False))
    index = read_index(folder)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    return index


def _files(task: FinetuneTask, name: str, text: Path) -> list[File]:
    """The files, in a fixed order. Raises: DataError when there are none."""
    if task.train_files is None:
        return [File(path, part, path.stat().st_size) for part in PARTS for path in text_tars(text, part)]
    if task.data == "datasets":
        if task.validation_files:
            return [File(Path(task.train_files), "train"), File(Path(task.validation_files), "validation")]
        return [File(Path(task.train_files), None)]
    suffixes = (".tar",) if task.data == "text_tars" else SUFFIXES.get(task.data, ("",))
    where = f"finetune.{name}"
    try:
        found = find_files(task.train_files, suffixes)
        apart = find_files(task.validation_files, suffixes) if task.validation_files else []
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if task.data == "text_tars" and (
        other := [item.path for item in (*found, *apart) if not item.path.endswith(".tar")]
    ):
        raise DataError(
            f"{where}: {other[0]}: no text tar (*.tar); of a file of rows say so: data: jsonl, csv or parquet"
        )
    if apart:
        return [_file(item, "train") for item in found] + [_file(item, "validation") for item in apart]
    parts = [Path(item.path).parent.name for item in found]
    if task.data == "text_tars" and set(parts) == set(PARTS):  # another run's text/, which has chosen already
        return [
            _file(item, "train" if part == "train" else "validation") for item, part in zip(found, parts, strict=True)
        ]
    return [_file(item, None) for item in found]


def _file(item: Item, part: Part | None) -> File:
    return File(Path(item.path), part, item.size)


def _texts(task: FinetuneTask, path: Path) -> Iterator[str]:
    """The documents of a file. Raises: DataError naming the file and the place."""
    if task.data == "text_tars":
        yield from (document.text for document in read_text_tar(path))
        return
    column = task.columns.get("text", "text")
    wanted = f'an object with "{column}"'
    found = dataset_rows(str(path), "train_files") if task.data == "datasets" else rows_of(path, wanted)
    for place, row in found:
        value = row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, str):
            has = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{place}: key '{column}' must hold a text; the row has {has or 'none'}")
        if value.strip():
            yield value


def _held_out(task: FinetuneTask, files: list[File]) -> set[int]:
    """Hashes of the documents that validation_files hold: a training document that is one of them is left out."""
    if not task.validation_files:
        return set()
    return {hash_of(text) for file in files if file.part == "validation" for text in _texts(task, file.path)}


def _encode_all(
    task: FinetuneTask, files: list[File], held_out: set[int], folder: Path, base: Path
) -> list[dict[str, Any]] | None:
    """The receipts of all files; None when the fast encoder was caught: what it made does not count any more."""
    encoder = Encoder.open(base, fast=not (folder / SLOW).exists())
    receipts = []
    with progress("encoding", sum(file.bytes for file in files), "B") as bar:
        for number, file in enumerate(files):
            receipt = folder / RECEIPTS / f"{number:05d}.json"
            if not receipt.is_file():
                made = _encode_file(task, file, number, held_out, folder, encoder)
                if encoder.differed:
                    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
                    (folder / SLOW).touch()
                    return None
                write_json(receipt, made)
            receipts.append(json.loads(receipt.read_text(encoding="utf-8")))
            bar.advance(file.bytes)
    return receipts


def _encode_file(
    task: FinetuneTask, file: File, number: int, held_out: set[int], folder: Path, encoder: Encoder
) -> dict[str, Any]:
    """Write the token tars of one file. Returns its receipt."""
    encoder.begin(number)
    dtype = token_dtype(encoder.vocab_size)
    stems = {part: f"{part}/{SOURCE}-{number:05d}" for part in PARTS}
    left_out = 0
    with (
        ShardWriter(folder, stems["train"], dtype, SHARD_TOKENS, MEMBER_TOKENS) as train,
        ShardWriter(folder, stems["validation"], dtype, SHARD_TOKENS, MEMBER_TOKENS) as validation,
    ):
        waiting: dict[Part, list[str]] = {part: [] for part in PARTS}
        writers = {"train": train, "validation": validation}

        def write(part: Part) -> None:
            ids, ends = encoder.encode_batch(waiting[part])
            writers[part].add(*with_end_of_text(ids, ends, encoder.eos_id), sum(map(utf8_bytes, waiting[part])))
            waiting[part].clear()

        held: dict[Part, int] = dict.fromkeys(PARTS, 0)
        for text in _texts(task, file.path):
            part = file.part or _part(text, task.validation)
            if part == "train" and held_out and hash_of(text) in held_out:
                left_out += 1
                continue
            waiting[part].append(text)
            held[part] += len(text)
            if held[part] >= BATCH_CHARACTERS:
                write(part)
                held[part] = 0
        for part in PARTS:
            if waiting[part]:
                write(part)
    shards = {part: [shard.to_json() for shard in writers[part].shards] for part in PARTS}
    return {"shards": shards, "held_out": left_out}


def _part(text: str, share: float) -> Part:
    """By the text's hash alone: equal texts lie on one side, wherever they stand."""
    return "validation" if hash_of(text) < share * 2**128 else "train"


def _commit(receipts: list[dict[str, Any]], name: str, task: FinetuneTask, folder: Path, encoder: Encoder) -> None:
    parts: dict[str, dict[str, tuple[Shard, ...]]] = {}
    for part in PARTS:
        shards = tuple(Shard.from_json(value) for receipt in receipts for value in receipt["shards"][part])
        tokens = sum(shard.tokens for shard in shards)
        if part == "train" and tokens <= task.seq_len:
            raise DataError(
                f"finetune.{name}: there are {tokens:,} tokens to train on, which fill no window of {task.seq_len:,} "
                "and the token after it; give more text, or lower seq_len"
            )
        if not tokens:
            raise DataError(
                f"finetune.{name}: no document is held out; raise finetune.{name}.validation, or give validation_files"
            )
        parts[part] = {SOURCE: shards}
    index = Index(encoder.vocab_size, encoder.eos_id, parts)
    remove_strays(folder, index)
    if left_out := sum(receipt["held_out"] for receipt in receipts):
        log.info(f"finetune.{name}: left out: {left_out:,} held_out")
    commit_index(folder, index)

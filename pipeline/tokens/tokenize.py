"""Stage `tokenize`: text tars to token tars.

Consecutive text tars of a source that hold about `shard_tokens` tokens are one task. A task writes its own token tars
and then, as its receipt, `tasks/<part>-<source>-<number>.json`; tasks run in any order in any number of processes and
a killed run goes on with those that lack a receipt, so the bytes do not depend on either. index.json comes last. Memory
of a process: one member (`member_tokens`), twice, and CACHE_BYTES of the encoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import manifest as manifests
from pipeline.cluster.ranks import cores
from pipeline.corpus.document import utf8_bytes
from pipeline.corpus.text_tars import Part, read_text_tar
from pipeline.corpus.workers import Workers
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.progress import log, progress
from pipeline.recipe import Recipe, TokenizeSettings
from pipeline.tokens.encode import Encoder
from pipeline.tokens.text_sizes import by_source, text_bytes
from pipeline.tokens.token_tars import (
    INDEX,
    Index,
    Shard,
    ShardWriter,
    read_index,
    remove_temporary,
    token_dtype,
    write_index,
)
from pipeline.tracking import Tracker

PARTS: tuple[Part, ...] = ("train", "validation")
RECEIPTS = "tasks"
SLOW = "tokenizers_only"  # a file that stays: gigatoken was caught giving other ids here
BATCH_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Task:
    """Text tars that become one token tar (or several, where they hold more tokens than was expected)."""

    part: Part
    source: str
    number: int
    tars: tuple[Path, ...]
    bytes: int  # of text, about

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05d}"

    def receipt(self, folder: Path) -> Path:
        return folder / RECEIPTS / f"{self.part}-{self.name}.json"


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make `tokens/`. Raises: DataError when a text tar is damaged or there is no training text."""
    folder, tokenizer = work.folder, recipe.workdir / "tokenizer"
    encoder = Encoder.open(tokenizer, fast=not (folder / SLOW).exists())
    if not (folder / INDEX).is_file():
        remove_temporary(folder)
        bytes_per_token = manifests.load(tokenizer).metrics["bytes_per_token"]
        tasks = plan(recipe.workdir / "text", round(recipe.tokenize.shard_tokens * bytes_per_token))
        fast = encoder.engine == "gigatoken"
        if not encode_all(tasks, folder, tokenizer, recipe.tokenize, fast):
            log.warning("gigatoken gave other ids than tokenizers on this text; encoding all of it with tokenizers")
            shutil.rmtree(folder / RECEIPTS, ignore_errors=True)  # first: with the mark there, receipts are believed
            (folder / SLOW).touch()
            encode_all(tasks, folder, tokenizer, recipe.tokenize, fast=False)
        parts: dict[str, dict[str, tuple[Shard, ...]]] = {part: {} for part in PARTS}
        for task in tasks:
            shards = json.loads(task.receipt(folder).read_text(encoding="utf-8"))["shards"]
            parts[task.part][task.source] = (
                *parts[task.part].get(task.source, ()),
                *(Shard.from_json(shard) for shard in shards),
            )
        write_index(folder, Index(encoder.vocab_size, encoder.eos_id, parts))
    index = read_index(folder)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    engine = "tokenizers" if (folder / SLOW).exists() else encoder.engine
    files = [folder / shard.file for sources in index.parts.values() for shards in sources.values() for shard in shards]
    counts = _counts(index) | {"dtype": index.dtype.name, "vocab_size": index.vocab_size, "engine": engine}
    log.info(
        f"tokenize: {counts['train']['tokens']:,} tokens to train on and {counts['validation']['tokens']:,} held out, "
        f"{index.dtype.name}, in {len(files)} tars"
    )
    return work.finish([folder / INDEX, *files], counts)


def plan(text: Path, task_bytes: int) -> list[Task]:
    """The tasks: they depend on the text tars and the settings alone.

    task_bytes: about so many bytes of text a task. Raises: DataError when there is no training text.
    """
    tasks = []
    for part in PARTS:
        sizes = text_bytes(text, part)
        if not sizes and part == "train":
            raise DataError(f"{text}: no training text; add sources, loosen corpus.rules or lower corpus.validation")
        for source, group in by_source(sizes).items():
            start, number = 0, 0
            while start < len(group):
                stop, held = start + 1, sizes[group[start]]
                while stop < len(group) and held + sizes[group[stop]] <= task_bytes:
                    held += sizes[group[stop]]
                    stop += 1
                tasks.append(Task(part, source, number, tuple(group[start:stop]), round(held)))
                start, number = stop, number + 1
    return tasks


def encode_all(tasks: list[Task], folder: Path, tokenizer: Path, settings: TokenizeSettings, fast: bool) -> bool:
    """Do the tasks that have no receipt yet. Returns False when gigatoken was caught giving wrong ids."""
    left = [task for task in tasks if not task.receipt(folder).is_file()]
    total = sum(task.bytes for task in tasks)
    work = partial(encode_task, folder=folder, tokenizer=tokenizer, settings=settings, fast=fast)
    count = min(settings.workers or cores(), max(len(left), 1))
    with progress("tokenize", total, start=total - sum(task.bytes for task in left)) as bar, Workers(count) as workers:
        return all(workers.run(work, left, bar))


def encode_task(
    task: Task, advance: Callable[[int], None], folder: Path, tokenizer: Path, settings: TokenizeSettings, fast: bool
) -> bool:
    """Text tars in, token tars and the receipt out. Returns False when gigatoken was caught giving wrong ids."""
    encoder = Encoder.open(tokenizer, fast)
    dtype = token_dtype(encoder.vocab_size)
    stem = f"{task.part}/{task.name}"
    with ShardWriter(folder, stem, dtype, settings.shard_tokens, settings.member_tokens) as writer:
        for texts in _batches(task.tars):
            ids, ends = encoder.encode_batch(texts)
            if encoder.differed:
                return False
            size = sum(map(utf8_bytes, texts))
            writer.add(*with_end_of_text(ids, ends, encoder.eos_id), size)
            advance(size)
    write_json(task.receipt(folder), {"shards": [shard.to_json() for shard in writer.shards]})
    return True


def with_end_of_text(
    ids: npt.NDArray[Any], ends: npt.NDArray[np.int64], eos_id: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Put the end-of-text token after each document: new ids and exclusive ends."""
    moved = ends + np.arange(1, len(ends) + 1)
    out = np.empty(len(ids) + len(ends), dtype=ids.dtype)
    text = np.ones(len(out), dtype=bool)
    text[moved - 1] = False
    out[text] = ids
    out[moved - 1] = eos_id
    return out, moved


def _batches(tars: tuple[Path, ...]) -> Iterator[list[str]]:
    """Texts, a few megabytes at a time."""
    texts: list[str] = []
    held = 0
    for tar in tars:
        for document in read_text_tar(tar):
            texts.append(document.text)
            held += len(document.text)
            if held >= BATCH_CHARACTERS:
                yield texts
                texts, held = [], 0
    if texts:
        yield texts


def _counts(index: Index) -> dict[str, Any]:
    def add_up(shards: list[Shard]) -> dict[str, int]:
        return {
            "tokens": sum(shard.tokens for shard in shards),
            "documents": sum(shard.documents for shard in shards),
            "bytes": sum(shard.text_bytes for shard in shards),
        }

    counts: dict[str, Any] = {}
    for part, sources in index.parts.items():
        counts[part] = add_up([shard for shards in sources.values() for shard in shards])
        counts[part]["sources"] = {source: add_up(list(shards)) for source, shards in sources.items()}
    return counts

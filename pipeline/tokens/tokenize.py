"""Stage `tokenize`: text tars, and token files of other programs, to token tars.

Consecutive text tars of a source that hold about `shard_tokens` tokens are one task. A task writes its own token tars
and then, as its receipt, `tasks/<part>-<source>-<number>.json`; with `shuffle` it writes half-shuffled documents, and
when all have, tasks of a second kind make the tars of them (shuffle.py). Tasks run in any order in any number of
processes and a killed run goes on with those that lack a receipt, so the bytes do not depend on either. index.json
comes last. Memory of a process: one member (`member_tokens`) three times, and CACHE_BYTES of the fast encoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cluster.job_array import Share
from pipeline.cluster.ranks import cores
from pipeline.corpus.document import in_batches_of
from pipeline.corpus.mix import plan_by_tokens, tell_plan
from pipeline.corpus.text_tars import Part, read_texts
from pipeline.corpus.workers import Workers
from pipeline.files import write_json
from pipeline.manifest import Manifest, Output, Work
from pipeline.progress import log, progress
from pipeline.recipe import Recipe
from pipeline.tokens.encode import CHECK_ONE_IN, SLOW, Encoder, read_tokenizer_json, with_end_of_text
from pipeline.tokens.fast_encode import FIRST_BYTES
from pipeline.tokens.imports.documents import read_documents, token_sizes
from pipeline.tokens.plan import PARTS, Task, open_import, plan
from pipeline.tokens.shuffle import Spill, SpillWriter, Tar, make_tar, plan_tars, read_tar
from pipeline.tokens.token_tars import (
    INDEX,
    MEMBERS,
    Index,
    Shard,
    ShardWriter,
    read_index,
    remove_strays,
    remove_temporary,
    token_dtype,
    write_index,
)
from pipeline.tracking import Tracker

RECEIPTS = "tasks"
DIFFERED = "the fast encoder gave other ids than tokenizers for a document of this text"
BATCH_BYTES = 4 << 20  # of text that is encoded at once

Ids = npt.NDArray[Any]
Ends = npt.NDArray[np.int64]
Receipt = dict[str, Any]


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make `tokens/`. Raises: DataError when a text tar or an imported file is damaged or there is no training text."""
    folder = work.folder
    encoder = _encoder(recipe, folder)
    facts = folder / RECEIPTS / "facts.json"
    if not (folder / INDEX).is_file():
        remove_temporary(folder)
        tasks = plan(recipe, encoder.eos_id)
        encode_all(tasks, recipe, folder, encoder)
        receipts = [_done(task, folder) for task in tasks]
        write_json(facts, {"checked_documents": sum(receipt["checked"] for receipt in receipts)})
        parts: dict[str, dict[str, tuple[Shard, ...]]] = {part: {} for part in PARTS}
        for task, receipt in zip(tasks, receipts, strict=True):
            for part, shards in receipt["shards"].items():
                made = tuple(Shard.from_json(shard) for shard in shards)
                parts[part][task.source] = (*parts[part].get(task.source, ()), *made)
        tars = _shuffled_tars(recipe, tasks, receipts)
        shuffle_all(tars, recipe, folder, encoder.vocab_size)
        for tar in tars:
            shuffled = read_tar(tar, folder / RECEIPTS)
            assert shuffled is not None, f"{tar.source} {tar.number}: no receipt though its tar was made"
            parts["train"][tar.source] = (*parts["train"].get(tar.source, ()), *shuffled)
        parts = {part: {name: shards for name, shards in found.items() if shards} for part, found in parts.items()}
        write_index(folder, Index(encoder.vocab_size, encoder.eos_id, parts))
    index = read_index(folder)
    engine: dict[str, Any] = {"engine": encoder.engine, "engine_why": encoder.why}
    if (folder / SLOW).exists():
        engine = {"engine": "tokenizers", "engine_why": DIFFERED}
    if facts.is_file():  # else it was stopped between the removal below and the manifest
        engine |= json.loads(facts.read_text(encoding="utf-8"))
    engine["checked_share"] = f"{FIRST_BYTES // 1024} KiB of each task, then 1 document in {CHECK_ONE_IN}"
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    remove_strays(folder, index)
    shards = list(index.shards())
    counts = _counts(index) | {"dtype": index.dtype.name, "vocab_size": index.vocab_size, **engine}
    log.info(
        f"tokenize: {counts['train']['tokens']:,} tokens to train on and {counts['validation']['tokens']:,} held out, "
        f"{index.dtype.name}, in {len(shards)} tars"
    )
    tell_plan("tokenize", plan_by_tokens(recipe, counts["train"]["sources"]))
    outputs = (Output(shard.file, shard.bytes, shard.sha256) for shard in shards)
    return work.finish([folder / INDEX, folder / MEMBERS, *outputs], counts)


def run_task(recipe: Recipe, work: Work, share: Share) -> None:
    """A share of the step that is due: encoding, or, when all is encoded, shuffling. Raises: as `run`."""
    folder = work.folder
    if (folder / INDEX).is_file():
        log.info(f"tokenize: task {share}: all is made; `pipeline tokenize` finishes the stage")
        return
    encoder = _encoder(recipe, folder)
    tasks = plan(recipe, encoder.eos_id)
    receipts = [read_receipt(task, folder) for task in tasks]
    if recipe.tokenize.shuffle and (whole := [one for one in receipts if one is not None]) and len(whole) == len(tasks):
        chosen = share.of(_shuffled_tars(recipe, tasks, whole))
        count = shuffle_all(chosen, recipe, folder, encoder.vocab_size)
        log.info(
            f"tokenize: task {share} has shuffled {count:,} of its {len(chosen):,} tars; when all tasks have, "
            "`pipeline tokenize` finishes the stage"
        )
        return
    mine = share.of(tasks)
    count = encode_all(mine, recipe, folder, encoder)
    then = "the same tasks again shuffle, or " if recipe.tokenize.shuffle else ""
    log.info(
        f"tokenize: task {share} has made {count:,} of its {len(mine):,} parts; when all tasks have, {then}"
        "`pipeline tokenize` finishes the stage"
    )


def _encoder(recipe: Recipe, folder: Path) -> Encoder:
    return Encoder.open(recipe.workdir / "tokenizer", fast=not (folder / SLOW).exists())


def _done(task: Task, folder: Path) -> Receipt:
    receipt = read_receipt(task, folder)
    assert receipt is not None, f"{task.name}: no receipt though its task was done"
    return receipt


# --- encoding ------------------------------------------------------------------------------------------------------


def encode_all(chosen: Sequence[Task], recipe: Recipe, folder: Path, encoder: Encoder) -> int:
    """Do those of the tasks that have no receipt yet; once the fast encoder gave wrong ids, with `tokenizers`.

    encoder: for the tasks that this very process does; other processes open their own. Returns how many were done.
    """
    total, count = sum(task.amount for task in chosen), 0
    while left := [task for task in chosen if read_receipt(task, folder) is None]:
        count = max(count, len(left))
        start = total - sum(task.amount for task in left)
        processes = min(recipe.tokenize.workers or cores(), len(left))
        work = partial(encode_task, recipe=recipe, folder=folder, encoder=encoder if processes == 1 else None)
        with progress("tokenize", total, start=start) as bar, Workers(processes) as workers:
            if not all(workers.run(work, left, bar)):
                log.warning(
                    "the fast encoder gave other ids than tokenizers on this text; encoding all of it with tokenizers"
                )
    return count


def encode_task(
    task: Task, advance: Callable[[int], None], recipe: Recipe, folder: Path, encoder: Encoder | None = None
) -> bool:
    """Text tars in, token tars (or a spill, to be shuffled) and the receipt out. Returns False when the fast
    encoder was caught giving wrong ids: then a mark is left, with which no receipt of it (`gigatoken`) counts any more,
    whichever task or machine it is of."""
    encoder = encoder or _encoder(recipe, folder)
    encoder.begin(recipe.seed)
    dtype, settings = token_dtype(encoder.vocab_size), recipe.tokenize
    with ExitStack() as files:
        plain: dict[Part, ShardWriter] = {}
        spill: SpillWriter | None = None
        for part in PARTS if task.piece else (task.part,):
            if part == "train" and settings.shuffle:
                key = (recipe.seed, task.source, task.number)
                spill = SpillWriter(folder / RECEIPTS, task.stem, dtype, settings.member_tokens, key)
                files.enter_context(spill)
                continue
            stem = f"{part}/{task.name}"
            plain[part] = ShardWriter(folder, stem, dtype, settings.shard_tokens, settings.member_tokens)
            files.enter_context(plain[part])
        for part, ids, ends, sizes in _documents(task, encoder, recipe, advance):
            if encoder.differed:
                (folder / SLOW).touch()
                return False
            if part == "train" and spill:
                spill.add(ids, ends, sizes)
            else:
                plain[part].add(ids, ends, int(sizes.sum()))
    receipt = {
        "engine": "none" if task.piece else encoder.engine,
        "checked": encoder.checked,
        "shards": {part: [shard.to_json() for shard in writer.shards] for part, writer in plain.items()},
        "spill": spill.spill.to_json() if spill and spill.spill else None,
    }
    write_json(task.receipt(folder / RECEIPTS), receipt, own=True)
    return True


def _documents(
    task: Task, encoder: Encoder, recipe: Recipe, advance: Callable[[int], None]
) -> Iterator[tuple[Part, Ids, Ends, npt.NDArray[np.int64]]]:
    """The documents of a task, a few megabytes at a time: part, ids, exclusive ends, bytes of text of each."""
    if task.piece:
        one = next(one for one in recipe.tokenize.imports if one.name == task.source)
        file = open_import(task.piece.path, one, encoder.eos_id)
        sizes_of = token_sizes(read_tokenizer_json(recipe.workdir / "tokenizer"), encoder)
        for documents in read_documents(file, task.piece, encoder, sizes_of, one.validation):
            for part in PARTS:
                ids, ends, sizes = documents.part(part == "validation")
                if len(ends):
                    yield part, ids, ends, sizes
            advance(len(documents.ids))
        return
    for texts in in_batches_of(chain.from_iterable(map(read_texts, task.tars)), BATCH_BYTES, len):
        ids, ends = encoder.encode_batch(texts)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        yield task.part, *with_end_of_text(ids, ends, encoder.eos_id), sizes
        advance(int(sizes.sum()))


def read_receipt(task: Task, folder: Path) -> Receipt | None:
    """What a task made; None where it is not done, or was done by a fast encoder that erred here."""
    try:
        receipt: Receipt = json.loads(task.receipt(folder / RECEIPTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if receipt["engine"] == "gigatoken" and (folder / SLOW).exists():
        return None
    return receipt


# --- shuffling -----------------------------------------------------------------------------------------------------


def _shuffled_tars(recipe: Recipe, tasks: Sequence[Task], receipts: Iterable[Receipt]) -> list[Tar]:
    """The tars that are made of spills; none where the recipe does not shuffle."""
    spills: dict[str, list[Spill]] = {}
    for task, receipt in zip(tasks, receipts, strict=True):
        if receipt["spill"]:
            spills.setdefault(task.source, []).append(Spill.from_json(receipt["spill"]))
    settings = recipe.tokenize
    found = [
        plan_tars(source, mine, recipe.seed, settings.shard_tokens, settings.member_tokens)
        for source, mine in spills.items()
    ]
    return [tar for tars in found for tar in tars]


def shuffle_all(chosen: Sequence[Tar], recipe: Recipe, folder: Path, vocab_size: int) -> int:
    """Make those of the tars that have no receipt yet; returns how many."""
    receipts = folder / RECEIPTS
    left = [tar for tar in chosen if read_tar(tar, receipts) is None]
    if not left:
        return 0
    dtype = token_dtype(vocab_size)
    settings = recipe.tokenize
    work = partial(make_tar, folder=folder, receipts=receipts, dtype=dtype, member_tokens=settings.member_tokens)
    total = sum(tar.tokens for tar in chosen)
    start = total - sum(tar.tokens for tar in left)
    processes = min(settings.workers or cores(), len(left))
    with progress("tokenize: shuffling", total, start=start) as bar, Workers(processes) as workers:
        for _ in workers.run(work, left, bar):
            pass
    return len(left)


# --- texts ---------------------------------------------------------------------------------------------------------


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

"""The n-grams of all evaluation sets, as files that every worker maps: made once, among the parts of the stage.

Memory to make it: about 60 bytes for each word of the sets; to use it: 14 bytes for each, shared by the workers of a
machine. `table.json`, written last, says that it is whole; what is in it depends on the sets alone, so that two
processes may make it at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import character_table, code_points
from pipeline.corpus.decontamination.grams import (
    FILTER_BITS,
    Filter,
    Hashes,
    fill_filter,
    hash_grams,
    hash_words,
    small_letters,
)
from pipeline.corpus.decontamination.items import read_items
from pipeline.corpus.normalize import normalize
from pipeline.errors import DataError
from pipeline.files import atomic_write, write_json
from pipeline.progress import log
from pipeline.settings.corpus import Corpus

FOLDER = "evaluation_sets"  # among the parts
_TABLE = "table.json"
_ARRAYS = ("grams", "items", "filter")


@dataclass(frozen=True)
class GramTable:
    """grams: sorted hashes; items: the item of each; bits: a filter over the hashes. sets: name, first item and numbers
    of each set, in order; ids, lengths: of each item, its id and how many different n-grams it has."""

    grams: Hashes
    items: npt.NDArray[np.int32]
    bits: Filter
    sets: list[dict[str, Any]]
    ids: list[str]
    lengths: list[int]

    def name_of(self, item: int) -> str:
        """An item's set and id, `set/file:line`; the names of sets hold no slash."""
        return next(f"{one['name']}/{self.ids[item]}" for one in reversed(self.sets) if one["first"] <= item)


def make_table(corpus: Corpus, parts: Path) -> None:
    """Make the table of the recipe's sets, where there are any and it is not there. Raises: DataError as `read_items`,
    and where nothing in a set is long enough."""
    settings = corpus.decontaminate
    folder = parts / FOLDER
    if settings is None or (folder / _TABLE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    grams: list[Hashes] = []
    ids: list[str] = []
    lengths: list[int] = []
    sets: list[dict[str, Any]] = []
    for one in settings.sets:
        first = len(ids)
        for item in read_items(one):
            own = [item_grams(normalize(text, corpus.normalize), settings.ngram) for text in item.texts]
            grams.append(np.unique(np.concatenate(own)) if own else np.empty(0, np.uint64))
            lengths.append(len(grams[-1]))
            ids.append(item.id)
        count = len(ids) - first
        short = sum(not length for length in lengths[first:])
        if short == count:
            raise DataError(
                f"corpus.decontaminate: set {one.name}: none of its {count:,} items has {settings.ngram} words in "
                f"columns {', '.join(one.columns)}; look at `columns`, or lower `ngram`"
            )
        sets.append({"name": one.name, "first": first, "items": count, "too_short": short})
        log.info(f"decontaminate: set {one.name}: {count:,} items, {short:,} too short for {settings.ngram} words")
    keys = np.concatenate(grams)
    owners = np.repeat(np.arange(len(ids), dtype=np.int32), lengths)
    order = np.lexsort((owners, keys))
    bits = np.zeros(1 << max(10, (len(keys) * FILTER_BITS // 8).bit_length()), np.uint8)
    fill_filter(keys, bits)
    made: dict[str, npt.NDArray[Any]] = {"grams": keys[order], "items": owners[order], "filter": bits}
    for name, array in made.items():
        with atomic_write(folder / f"{name}.npy", own=True) as handle:
            np.save(handle, array)
    write_json(folder / _TABLE, {"sets": sets, "ids": ids, "lengths": lengths}, own=True)


def item_grams(text: str, length: int) -> Hashes:
    """Hashes of the n-grams of a text."""
    words, _ = hash_words(code_points(text), character_table(), small_letters())
    return hash_grams(words, length)


def open_table(parts: Path) -> GramTable:
    """The table that was made."""
    folder = parts / FOLDER
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
    return GramTable(*arrays, **json.loads((folder / _TABLE).read_text(encoding="utf-8")))

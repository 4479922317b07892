"""Documents that overlap with items of evaluation sets are dropped, or the words in common are cut out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.corpus.characters import character_table, code_points
from pipeline.corpus.decontamination.grams import find_grams, hash_words, small_letters
from pipeline.corpus.decontamination.table import open_table
from pipeline.corpus.document import Document, Dropped, drop
from pipeline.corpus.words import Spans
from pipeline.settings.decontaminate import Decontaminate

RULE = "decontaminate"


class Decontaminator:
    """What a recipe does with overlaps. Use as a function. parts: the folder with the table (table.py)."""

    def __init__(self, settings: Decontaminate, parts: Path) -> None:
        self._settings = settings
        self._table = open_table(parts)
        self._characters, self._small = character_table(), small_letters()

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, without the words in common where the recipe cuts them out, or what is left of it.

        `contaminated` of either: the items. A dropped one's value names the set and the item of which most was found,
        and the share of its n-grams.
        """
        length, table = self._settings.ngram, self._table
        words, spans = hash_words(code_points(document.text), self._characters, self._small)
        found = find_grams(words, length, table.grams, table.bits)
        if not len(found):
            return document
        rows = np.unique(found[:, 1])  # an n-gram counts once, however often it is there
        owners = {int(row): self._owners(int(row)) for row in rows}
        counts = Counter(item for items in owners.values() for item in items)
        shares = {item: count / table.lengths[item] for item, count in counts.items()}
        hit = sorted(item for item, share in shares.items() if share >= self._settings.min_share)
        if not hit:
            return document
        document.contaminated = [table.name_of(item) for item in hit]
        if self._settings.remove == "passage":
            chosen = set(hit)
            places = [int(place) for place, row in found.tolist() if not chosen.isdisjoint(owners[row])]
            document.text = _without(document.text, places, spans, length)
            if document.text.strip():
                return document
        most = max(hit, key=lambda item: (shares[item], -item))
        gone = drop(document, RULE, f"{table.name_of(most)} {shares[most]:.3f}", self._settings.min_share)
        gone.contaminated = document.contaminated
        return gone

    def _owners(self, row: int) -> list[int]:
        """The items that have the n-gram whose first row is given."""
        end = int(np.searchsorted(self._table.grams, self._table.grams[row], "right"))
        return [int(item) for item in self._table.items[row:end]]


def _without(text: str, places: Sequence[int], spans: Spans, length: int) -> str:
    """The text without the words of the n-grams that begin at these places (in order)."""
    pieces = []
    done = 0
    for place in places:
        start, end = int(spans[place, 0]), int(spans[place + length - 1, 1])
        if start > done:
            pieces.append(text[done:start])
        done = max(done, end)
    return "".join([*pieces, text[done:]])

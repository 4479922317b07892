"""Documents without the personal data and secrets in them: replaced by placeholders, or the whole document dropped.

What was found is counted by type. The values themselves go nowhere: not into records, dropped documents, logs or
errors.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.corpus.document import BEGINNING, Document, Dropped, drop
from pipeline.corpus.privacy.credentials import aws_secret_at, email_at, jwt_at, private_key_at, token_at
from pipeline.corpus.privacy.numbers import Hit, iban_at, in_run, ipv6_at
from pipeline.corpus.privacy.scan import (
    AWS_SECRET,
    CLASSES,
    EMAIL,
    IBAN,
    IPV6,
    JWT,
    NUMBER,
    PEM,
    PREFIXES,
    find_places,
)
from pipeline.settings.privacy import TYPES, Privacy, placeholder

_FORMS_AT = {EMAIL: email_at, IBAN: iban_at, JWT: jwt_at, PEM: private_key_at, AWS_SECRET: aws_secret_at}
_ORDER = {kind: number for number, kind in enumerate(TYPES)}
_MARGIN = 1 << 15  # characters after a beginning within which whatever starts in it ends


def find(raw: bytes) -> list[Hit]:
    """All personal data and secrets in a text (UTF-8): in order, without overlaps; what begins first goes first."""
    places = find_places(np.frombuffer(raw, np.uint8), CLASSES, PREFIXES)
    if not len(places):
        return []
    hits: list[Hit] = []
    block_end = 0  # of a private key, in which nothing else is looked for
    for kind, start, end, traits in places.tolist():
        if start < block_end:
            continue
        if kind == NUMBER:
            hits += in_run(raw, start, end, traits)
        elif kind == IPV6:
            hits += ipv6_at(raw, start, end)
        else:
            hits += _FORMS_AT.get(kind, token_at)(raw, start)
            if kind == PEM and hits and hits[-1][2] == "private_key":
                block_end = hits[-1][1]
    hits.sort(key=lambda hit: (hit[0], -hit[1], _ORDER[hit[2]]))
    kept: list[Hit] = []
    for hit in hits:
        if not kept or hit[0] >= kept[-1][1]:
            kept.append(hit)
    return kept


class Scrubber:
    """What a recipe does with personal data. Use as a function."""

    def __init__(self, settings: Privacy) -> None:
        self._actions = {kind: settings.action(kind) for kind in TYPES}
        self._marks = {kind: placeholder(kind).encode() for kind in TYPES}

    def __call__(self, document: Document) -> Document | Dropped:
        """The document with placeholders, or what is left of one that holds a type for which documents are dropped.

        `private` of either counts what was found, by type; of the types that are kept nothing.
        """
        raw = document.text.encode("utf-8")
        hits = self._wanted(raw)
        if not hits:
            self._clean_facts(document)
            return document
        counts = dict(sorted(Counter(kind for _, _, kind in hits).items()))
        gone = next((kind for kind in TYPES if kind in counts and self._actions[kind] == "drop"), None)
        if gone is not None:
            dropped = self.dropped(document, drop(document, f"privacy.{gone}", counts[gone], 0))
            dropped.private = counts
            return dropped
        document.text = self._replaced(raw, hits).decode("utf-8")
        document.private = counts
        self._clean_facts(document)
        return document

    def dropped(self, document: Document, gone: Dropped) -> Dropped:
        """What is left of a document that any rule dropped, with placeholders in its beginning."""
        gone.text = self._beginning(document.text)
        return self._named(gone)

    def unread(self, gone: Dropped) -> Dropped:
        """What is left of a record that could not be read: a cut, broken piece of which nobody can tell what it holds,
        so that nothing of it is kept."""
        gone.text = ""
        return self._named(gone)

    def _named(self, gone: Dropped) -> Dropped:
        """Its name and the reason cleaned: a record may have addresses for the names of its fields."""
        gone.id = self._clean(gone.id)
        if isinstance(gone.value, str):
            gone.value = self._clean(gone.value)
        return gone

    def _wanted(self, raw: bytes) -> list[Hit]:
        return [hit for hit in find(raw) if self._actions[hit[2]] != "keep"]

    def _replaced(self, raw: bytes, hits: list[Hit]) -> bytes:
        pieces = []
        done = 0
        for start, end, kind in hits:
            pieces += [raw[done:start], self._marks[kind]]
            done = end
        return b"".join([*pieces, raw[done:]])

    def _clean(self, text: str) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        hits = self._wanted(raw)
        return self._replaced(raw, hits).decode("utf-8", "surrogatepass") if hits else text

    def _clean_facts(self, document: Document) -> None:
        """Ids and metadata too: of mail they are addresses. Signals are numbers."""
        document.id = self._clean(document.id)
        for key, value in document.metadata.items():
            if key != "signals":
                document.metadata[key] = self._clean(value)

    def _beginning(self, text: str) -> str:
        """The first BEGINNING characters, with placeholders; what starts in them and ends after them is not cut."""
        raw = text[: BEGINNING + _MARGIN].encode("utf-8", "surrogatepass")
        end = len(text[:BEGINNING].encode("utf-8", "surrogatepass"))
        hits = [hit for hit in self._wanted(raw) if hit[0] < end]
        end = max(end, hits[-1][1]) if hits else end
        return self._replaced(raw[:end], hits).decode("utf-8", "surrogatepass")

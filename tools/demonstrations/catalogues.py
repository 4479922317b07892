"""Messages and their translations, out of gettext catalogues (.mo), in two parts that have no message in common."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from babel.messages.mofile import read_mo

HELD_OUT = 0.15  # share of the messages
MOST_CHARACTERS = 160  # of a message: longer ones are few, and a small model's window is short
PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z]|\{\w*\}|<[^<>]{0,100}>")


@dataclass(frozen=True)
class Pair:
    """A message and its translation. plural: the message's last form, where it has several."""

    source: str
    target: str
    plural: str = ""

    @property
    def meaning(self) -> str:
        """The message without placeholders, markup, punctuation and case: what is said, however it is set."""
        return words_of(self.plural or self.source)


def words_of(text: str) -> str:
    """In lower case, one space between them."""
    return " ".join(re.findall(r"[^\W_]+", PLACEHOLDER.sub(" ", text).lower()))


def read_catalogue(path: Path) -> list[Pair]:
    """Translated messages of a .mo file; of plurals the singular and the plural. It has none that are fuzzy, whose
    translation is a guess."""
    with open(path, "rb") as file:
        catalogue = read_mo(file)
    found = []
    for message in catalogue:
        if message.id:
            sources, targets = _forms(message.id), _forms(message.string)
            plural = sources[-1]
            if len(targets) < len(sources):  # Chinese has one form for all numbers, which is the plural's
                sources = sources[-1:]
            found += [Pair(*both, plural) for both in zip(sources, targets, strict=False) if all(both)]
    return found


def _forms(text: str | Sequence[str] | None) -> list[str]:
    """Of a message or its translation: one, or the singular and the plurals; "" where it is not translated."""
    return [form.strip() for form in ([text] if isinstance(text, str) else text or [""])]


def split(pairs: Iterable[Pair], share: float = HELD_OUT, others: Iterable[Pair] = ()) -> tuple[list[Pair], list[Pair]]:
    """(to learn, held out), by a hash of what a message says, so that both parts are the same in all languages.

    others: of other catalogues, to learn only; what the hash holds out is left out of these.
    A message stands once, with its first translation. Dropped: what says nothing (placeholders, punctuation), what is
    too long, what says in the training part what a held-out one says in either language, and messages whose translation
    is the message itself, which copying would get right.
    """
    unique: dict[str, Pair] = {}
    held_out: dict[str, Pair] = {}
    for part in (pairs, others):
        for pair in part:
            if len(pair.source) <= MOST_CHARACTERS and pair.meaning and pair.target != pair.source:
                if part is pairs and _share(pair.meaning) < share:
                    held_out.setdefault(pair.meaning, pair)
                elif part is pairs or min(_share(pair.meaning), _share(words_of(pair.source))) >= share:
                    unique.setdefault(pair.source, pair)
    answers = {words_of(pair.target) for pair in held_out.values()}
    train = [one for one in unique.values() if words_of(one.source) not in held_out]
    return [one for one in train if words_of(one.target) not in answers], list(held_out.values())


def _share(text: str) -> float:
    """A number from 0 to 1, the same for the same text everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def rows(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """As a seq2seq task reads them."""
    return [{"source": pair.source, "target": pair.target} for pair in pairs]

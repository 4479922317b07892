"""Lists that a recipe names: blocked addresses of the web, and words that no document may hold."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import RecipeError

_WORD = re.compile(r"\w+")


def _read_lines(path: str, key: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"corpus.rules.lists.{key} = {path}: cannot be read: {error}") from None
    found = [line.strip().lower() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


class BlockedUrls:
    """Domains (with those below them) and addresses (with those that begin so)."""

    def __init__(self, path: str) -> None:
        entries = [re.sub(r"^[a-z]+://", "", line).rstrip("/") for line in _read_lines(path, "blocked_urls")]
        self._entries = frozenset(entries)

    def entry_of(self, url: str) -> str | None:
        """The entry that an address lies under, else None."""
        if not url:
            return None
        try:
            parts = urlsplit(url.lower() if "://" in url else f"http://{url.lower()}")
            host = parts.hostname or ""
        except ValueError:  # a malformed address, such as an unclosed IPv6 bracket
            return None
        labels = host.split(".")
        for first in range(len(labels)):
            if (domain := ".".join(labels[first:])) in self._entries:
                return domain
        steps = parts.path.split("/")
        for length in range(len(steps), 1, -1):
            if (address := host + "/".join(steps[:length]).rstrip("/")) in self._entries:
                return address
        return None


class BadWords:
    """Words are looked up whole; phrases, and words of scripts without spaces, anywhere in the text."""

    def __init__(self, path: str) -> None:
        entries = _read_lines(path, "bad_words")
        self._words = frozenset(entry for entry in entries if entry.isascii() and _WORD.fullmatch(entry))
        phrases = sorted(set(entries) - self._words)
        self._phrases = [re.compile(_bounded(phrase)) for phrase in phrases]

    def count(self, text: str) -> int:
        """How many different entries occur."""
        lowered = text.lower()
        words = len(self._words.intersection(_WORD.findall(lowered))) if self._words else 0
        return words + sum(1 for phrase in self._phrases if phrase.search(lowered))


def _bounded(phrase: str) -> str:
    """A pattern: between characters that are no part of a word, unless the script is written without spaces."""
    from pipeline.corpus.characters import UNSPACED, character_table

    pattern = re.escape(phrase)
    return pattern if character_table()[ord(phrase[0])] & UNSPACED else rf"(?<!\w){pattern}(?!\w)"

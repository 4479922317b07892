"""Lines and paragraphs that several documents have: which are found, which go, what is left of the text."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import external_sort, repeated_pieces
from pipeline.corpus.keyed_rows import KeyedPart, KeyedRowsWriter
from pipeline.corpus.repeated_pieces import WIDTH, PieceHasher, find_repeated, without
from pipeline.settings.duplicates import RepeatedPieces


def pieces(text: str, kind: str) -> list[str]:
    if kind == "duplicate_lines":
        return text.split("\n")
    return [piece for piece in re.split(r"\n(?:[^\S\n]*\n)+|^(?:[^\S\n]*\n)+", text) if piece.strip()]


def found_in(texts: list[str], kind: str, parameters: RepeatedPieces, memory: int) -> set[tuple[int, int]]:
    """(document, piece) of all that goes."""
    found = set()
    with TemporaryDirectory() as folder:
        parts = []
        for number in range(2):  # two splits
            own = texts[number * (len(texts) // 2) :] if number else texts[: len(texts) // 2]
            with open(path := Path(folder) / str(number), "wb") as handle:
                writer = KeyedRowsWriter(handle, 1, WIDTH)
                hasher = PieceHasher(kind, parameters)
                for record, text in enumerate(own):
                    hasher.add(text, record, writer)
                writer.flush()
            parts.append(KeyedPart(path, 1, WIDTH, number * (len(texts) // 2), len(own)))
        for n in range(2):
            gone = np.zeros(len(texts), np.bool_)
            find_repeated(parts, gone, parameters, (n, 2), memory, out := Path(folder) / f"found{n}")
            found |= {(int(a), int(b)) for a, b in np.fromfile(out, np.uint64).reshape(-1, 2)}
    return found


LINES = st.sampled_from(["alpha beta", "Alpha, Beta!", "gamma", "", "  ", "}", "alpha beta delta", "中文", "--"])
TEXTS = st.lists(st.lists(LINES, max_size=6).map("\n".join), min_size=2, max_size=7)


@settings(deadline=None, max_examples=120)
@given(
    TEXTS, st.sampled_from(repeated_pieces.KINDS), st.none() | st.integers(1, 3), st.integers(1, 9), st.integers(1, 5)
)
def test_equal_to_the_obvious_way(
    texts: list[str], kind: str, max_documents: int | None, min_characters: int, rows: int
) -> None:
    parameters = RepeatedPieces(min_characters=min_characters, max_documents=max_documents)
    places: dict[str, list[tuple[int, int]]] = {}
    for document, text in enumerate(texts):
        for number, piece in enumerate(pieces(text, kind)):
            words = " ".join(re.findall(r"[a-z]+|[中文]", piece.lower()))
            if words and len(piece.strip()) >= min_characters:
                places.setdefault(words, []).append((document, number))
    wanted = set()
    for of_words in places.values():
        documents = sorted({document for document, _ in of_words})
        if max_documents is None:
            wanted |= {place for place in of_words if place[0] != documents[0]}
        elif len(documents) > max_documents:
            wanted |= set(of_words)
    with mock.patch.object(external_sort, "LEAST_ROWS", 4):
        assert found_in(texts, kind, parameters, 2 * rows * repeated_pieces.BYTES_A_ROW) == wanted


@pytest.mark.parametrize(
    ("lines", "paragraphs", "left"),
    [
        ([0], [], "two\n\nthree\nfour\n\n\nfive"),
        ([6], [], "one\ntwo\n\nthree\nfour\n\nfive"),
        ([], [1], "one\ntwo\n\nfive"),
        ([], [2], "one\ntwo\n\nthree\nfour"),
        ([0], [1, 2], "two"),
        ([0, 1], [0, 1, 2], ""),
    ],
)
def test_what_is_left(lines: list[int], paragraphs: list[int], left: str) -> None:
    assert without("one\ntwo\n\nthree\nfour\n\n\nfive", lines, paragraphs) == left

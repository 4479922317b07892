"""Lines and paragraphs that several documents have: hashed as texts are read, then found partition by partition.

A line or paragraph is told by its words, in lower case (as minhash.py defines them): case, punctuation and white space
make no difference. One without words is never taken out. Within a document repetition is Gopher's business
(rules.py); here a document counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import SPACE, SYMBOL, UNSPACED, character_table, code_points
from pipeline.corpus.compiled import compiled
from pipeline.corpus.external_sort import ExternalSort
from pipeline.corpus.keyed_rows import RUN_ROWS, KeyedPart, KeyedRowsWriter, Rows, gather, key_range
from pipeline.corpus.minhash import mixed
from pipeline.corpus.words import Codes, Table
from pipeline.files import atomic_write
from pipeline.settings.duplicates import RepeatedPieces

KINDS = ("duplicate_lines", "duplicate_paragraphs")  # also the sections of the recipe, and the rules' names
WIDTH = 3  # of a row: hash, record, number of the line or paragraph in its document
BYTES_A_ROW = 200  # in memory, while a partition is sorted

_NEWLINE = 0x0A
_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
_BASE, _ZERO, _ONE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0), np.uint64(1)


class PieceHasher:
    """Hashes the lines or paragraphs of texts into a file. kind: one of KINDS."""

    def __init__(self, kind: str, settings: RepeatedPieces) -> None:
        self._paragraphs = kind == "duplicate_paragraphs"
        self._least = settings.min_characters

    def add(self, text: str, record: int, writer: KeyedRowsWriter) -> None:
        """Take in the lines or paragraphs of a document that are long enough."""
        codes = code_points(text.lower())
        rows = np.empty((text.count("\n") + 1, WIDTH), np.uint64)
        count = _hash_pieces(codes, character_table(), self._paragraphs, self._least, rows)
        rows[:count, 1] = record
        start = 0
        while start < count:
            some = rows[start : min(start + RUN_ROWS - writer.used, count)]
            writer.buffer[0, writer.used : writer.used + len(some)] = some
            writer.add(len(some))
            start += len(some)


@compiled
def _hash_pieces(codes: Codes, table: Table, paragraphs: bool, least: int, rows: Rows) -> int:
    """Fill in hash and number of each line or paragraph with a word and `least` characters; how many they are.

    A paragraph is lines in a row that are not blank. White space at both ends counts for nothing.
    """
    found = number = words = 0
    first = last = -1  # of the piece's characters but white space
    blank = True  # the line, so far
    piece = _ZERO
    word = _OFFSET
    inside = False
    size = len(codes)
    for place in range(size + 1):
        code = codes[place] if place < size else _NEWLINE
        bits = table[code]
        ends_word = bits & (SPACE | SYMBOL | UNSPACED) != 0
        if inside and ends_word:
            piece = piece * _BASE + mixed(word)
            words += 1
            word = _OFFSET
            inside = False
        if not bits & SPACE:
            blank = False
            first = place if first < 0 else first
            last = place
            if not bits & SYMBOL:
                word = (word ^ np.uint64(code)) * _PRIME
                if bits & UNSPACED:
                    piece = piece * _BASE + mixed(word)
                    words += 1
                    word = _OFFSET
                else:
                    inside = True
        if code != _NEWLINE:
            continue
        if not paragraphs or blank or place == size:
            if words and last - first >= least - 1:
                rows[found, 0] = mixed(piece)
                rows[found, 2] = np.uint64(number)
                found += 1
            number += not paragraphs or first >= 0
            words = 0
            first = last = -1
            piece = _ZERO
        blank = True
    return found


# --- which of them go ----------------------------------------------------------------------------------------------


def find_repeated(
    parts: Sequence[KeyedPart],
    gone: npt.NDArray[np.bool_],
    settings: RepeatedPieces,
    partition: tuple[int, int],
    memory: int,
    path: Path,
) -> None:
    """Write what goes, of a partition (number, of how many) of all hashes, to `path`.

    The file: rows of two uint64, sorted: a record's place among all, and the number of the line or paragraph in it.
    Memory: `memory` bytes, whatever the partition holds.
    """
    low, high = key_range(*partition)
    most = max(memory // 2 // BYTES_A_ROW, 1)

    def blocks() -> Iterator[Rows]:
        return gather(parts, 0, low, high, most, gone)

    with ExternalSort(path.parent, 2, memory // 2) as found:
        if settings.max_documents is None:
            for rows, first, _ in _first_records(blocks()):
                found.add(rows[rows[:, 1] != first, 1:])
        else:
            over = dict(_documents_over_blocks(blocks()))
            for rows, _, count in _first_records(blocks()):
                for key in rows[[0, -1], 0].tolist():  # a key may go over several blocks at the ends of one alone
                    if key in over:
                        count[rows[:, 0] == np.uint64(key)] = over[key]
                found.add(rows[count > settings.max_documents, 1:])
        with atomic_write(path, own=True) as out:
            for rows in found.sorted_blocks():
                out.write(rows.tobytes())


def _first_records(blocks: Iterable[Rows]) -> Iterator[tuple[Rows, npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
    """Blocks, the first record with each row's key, and how many records of the block have that key; (rows,) each."""
    last: tuple[np.uint64, np.uint64] | None = None
    for rows in blocks:
        new = np.diff(rows[:, 0], prepend=~rows[:1, 0]) != 0
        leaders = np.flatnonzero(new)
        first = rows[leaders, 1].copy()
        if last is not None and last[0] == rows[0, 0]:
            first[0] = last[1]
        lengths = np.diff(np.append(leaders, len(rows)))
        records = np.add.reduceat((new | (np.diff(rows[:, 1], prepend=rows[:1, 1]) != 0)).astype(np.int64), leaders)
        last = rows[-1, 0], first[-1]
        yield rows, np.repeat(first, lengths), np.repeat(records, lengths)


def _documents_over_blocks(blocks: Iterable[Rows]) -> Iterator[tuple[int, int]]:
    """(key, records that have it) of the keys that are in more than one block."""
    key: int | None = None
    record = -1  # the last one with the key
    count = 0
    several = False
    for rows, _, counts in _first_records(blocks):
        if key is not None and int(rows[0, 0]) == key:
            count += int(counts[0]) - (int(rows[0, 1]) == record)
            several = True
        if int(rows[-1, 0]) != key:
            if several and key is not None:
                yield key, count
            key, count, several = int(rows[-1, 0]), int(counts[-1]), False
        record = int(rows[-1, 1])
    if several and key is not None:
        yield key, count


# --- taking them out -----------------------------------------------------------------------------------------------


def without(text: str, lines: Sequence[int], paragraphs: Sequence[int]) -> str:
    """The text without some of its lines and paragraphs, by number; blank lines after a paragraph go with it."""
    lost_lines, lost_paragraphs = set(lines), set(paragraphs)
    kept = []
    paragraph, inside = -1, False
    for number, line in enumerate(text.split("\n")):
        blank = not line or line.isspace()
        paragraph += not blank and not inside
        inside = not blank
        if number not in lost_lines and paragraph not in lost_paragraphs:
            kept.append(line)
    return "\n".join(kept).rstrip("\n")

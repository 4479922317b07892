"""What a split leaves of its documents for finding copies of them: `<split>.minhash`, `<split>.duplicate_lines`, …

One file for each search that the recipe asks for, as keyed_rows.py describes them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from pipeline.corpus.keyed_rows import KeyedRowsWriter
from pipeline.corpus.minhash import Signer
from pipeline.corpus.repeated_pieces import KINDS, WIDTH, PieceHasher
from pipeline.files import atomic_write
from pipeline.recipe import Corpus
from pipeline.settings.duplicates import RepeatedPieces

SIGNATURES = "minhash"


def fingerprint_file(folder: Path, split: str, kind: str) -> Path:
    """Of a split, by name. kind: SIGNATURES, or one of repeated_pieces.KINDS."""
    return folder / f"{split}.{kind}"


def piece_kinds(corpus: Corpus) -> dict[str, RepeatedPieces]:
    """Whether repeated lines, paragraphs or both are looked for."""
    return {kind: found for kind in KINDS if (found := getattr(corpus, kind)) is not None}


class Fingerprints(contextlib.ExitStack):
    """Writes the files of a split. Use as a context manager; they are there, whole, when the block ends."""

    def __init__(self, folder: Path, split: str, corpus: Corpus) -> None:
        super().__init__()
        self._folder, self._split = folder, split
        self._pieces = [
            (PieceHasher(kind, settings), self._writer(kind, 1, WIDTH))
            for kind, settings in piece_kinds(corpus).items()
        ]
        self._signer = Signer(corpus.near_duplicates) if corpus.near_duplicates else None
        if self._signer:
            self._signatures = self._writer(SIGNATURES, self._signer.bands, self._signer.width)
            self._rows = np.empty((self._signer.bands, self._signer.width), np.uint64)

    def _writer(self, kind: str, lists: int, width: int) -> KeyedRowsWriter:
        handle = self.enter_context(atomic_write(fingerprint_file(self._folder, self._split, kind), own=True))
        writer = KeyedRowsWriter(handle, lists, width)
        self.callback(writer.flush)
        return writer

    def add(self, text: str, record: int) -> None:
        """Take in a document. record: its place among the split's."""
        if self._signer and self._signer.sign(text, record, self._rows):
            self._signatures.buffer[:, self._signatures.used] = self._rows
            self._signatures.add()
        for hasher, writer in self._pieces:
            hasher.add(text, record, writer)

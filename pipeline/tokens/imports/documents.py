"""Imported tokens as our own: ids checked against the vocabulary, documents ended, bytes of text counted, some held
out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.encode import Encoder
from pipeline.tokens.imports.flat import FlatFile
from pipeline.tokens.imports.megatron import MegatronFile
from pipeline.tokens.imports.pieces import Batch, Piece
from pipeline.tokens.permutation import permute

_PLACES = 1 << 61


@dataclass(frozen=True)
class Documents:
    """Whole documents, each ending with end-of-text. ids: (tokens,) uint32; ends: (documents,) exclusive; text_bytes:
    (documents,) UTF-8 bytes that they stand for; held_out: (documents,) bool."""

    ids: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]

    def part(self, held_out: bool) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """ids, ends and bytes of text of the documents that are, or are not, held out."""
        chosen = self.held_out == held_out
        if chosen.all():
            return self.ids, self.ends, self.text_bytes
        lengths = np.diff(self.ends, prepend=0)
        return self.ids[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen]), self.text_bytes[chosen]


def read_documents(
    file: MegatronFile | FlatFile, piece: Piece, encoder: Encoder, sizes: npt.NDArray[np.int64], validation: float
) -> Iterator[Documents]:
    """The documents of a piece, about a million tokens at a time.

    sizes: bytes of text of each token (token_sizes); validation: share of documents held out. An empty document, or one
    that is nothing but end-of-text, is left out.
    Raises: DataError where an id is not in the vocabulary.
    """
    for batch in file.batches(piece):
        _check(batch, piece, encoder)
        starts = np.concatenate(([0], batch.ends[:-1]))
        held_out = _drawn(batch.first + starts, piece.path.name, validation)
        ids, ends = end_documents(batch, encoder.eos_id)
        lengths = np.diff(ends, prepend=0)
        some = lengths > 1
        if not some.all():
            ids, ends, held_out = ids[np.repeat(some, lengths)], np.cumsum(lengths[some]), held_out[some]
        if len(ends):
            yield Documents(ids, ends, np.add.reduceat(sizes[ids], np.concatenate(([0], ends[:-1]))), held_out)


def end_documents(batch: Batch, eos_id: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """ids and exclusive ends, end-of-text put behind each document that lacks it (a row that was merely cut keeps its
    ids)."""
    ids = batch.ids.astype(np.uint32)
    if not batch.ended:
        return ids, batch.ends
    lacks = ids[batch.ends - 1] != eos_id
    return np.insert(ids, batch.ends[lacks], np.uint32(eos_id)), batch.ends + np.cumsum(lacks)


def token_sizes(tokenizer_json: str, encoder: Encoder) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of text that each id stands for, (vocabulary,); 0 for special tokens.

    Exact for byte-level BPE, whose tokens are written a letter a byte; else of the token's text by itself.
    """
    value = json.loads(tokenizer_json)
    special = {token["id"] for token in value.get("added_tokens") or [] if token.get("special")}
    byte_level = "ByteLevel" in json.dumps(value.get("decoder"))
    found = np.zeros(encoder.vocab_size, dtype=np.int64)
    for word, number in encoder.vocabulary().items():
        if number not in special:
            text = word if byte_level else encoder.decode(np.array([number]))
            found[number] = len(text) if byte_level else len(text.encode("utf-8", "surrogatepass"))
    return found


def _check(batch: Batch, piece: Piece, encoder: Encoder) -> None:
    ids: npt.NDArray[Any] = batch.ids
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= encoder.vocab_size):
        place = int(np.flatnonzero((ids < 0) | (ids >= encoder.vocab_size))[0])
        raise DataError(
            f"{piece.path}: token {batch.first + place:,} is {int(ids[place])}, of a vocabulary of "
            f"{encoder.vocab_size:,}; tokenizer.path is not the tokenizer that made it, or the dtype is wrong"
        )


def _drawn(places: npt.NDArray[np.int64], file: str, share: float) -> npt.NDArray[np.bool_]:
    """Whether a hash of each document's place falls into the first `share` of all hashes."""
    return permute(places, _PLACES, "held out", zlib.crc32(file.encode())) < round(share * _PLACES)

"""The fastest exact encoders there are: gigatoken, and for Chinese and Japanese compiled_bpe.py.

gigatoken's cache only grows: once the process has grown by CACHE_BYTES it is made anew, in milliseconds. Text of which
three tenths are Chinese characters or kana, words that hardly ever come again, goes to compiled functions once there
was enough of it to be worth loading them and some of it was compared with `tokenizers`; they refuse what they do not
know, and gigatoken takes that. Which of the two encodes a text never changes its ids.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import psutil

from pipeline.cluster.ranks import cores
from pipeline.corpus.document import in_batches_of
from pipeline.tokens.bpe_tables import read_tables

if TYPE_CHECKING:
    from pipeline.tokens.compiled_bpe import CompiledBpe

CACHE_BYTES = 512 * 1024 * 1024
CACHE_CHECK_BYTES = 8 * 1024 * 1024  # text between two looks at the process's size
COMPILED_AFTER = 8 * 1024 * 1024  # bytes of Chinese and Japanese, which take gigatoken half a second
FIRST_BYTES = 64 * 1024  # text that is compared with `tokenizers` before any other
CHECK_MAX = 1 << 20  # characters or bytes of one text that is compared: `tokenizers` takes a third of a second for it
_FIRST, _LAST = 0xE3, 0xE9  # bytes that characters from U+3000 to U+9FFF begin with, three bytes each

Ids = npt.NDArray[np.uint32]
Ends = npt.NDArray[np.int64]
Texts = list[str] | list[bytes]


class FastEncoder:
    """The ids of texts, no token of which is special. Memory: CACHE_BYTES, 12 bytes a byte of a call's texts, and where
    the compiled encoder is loaded 200 MB.

    erred: the compiled encoder was caught giving other ids than `tokenizers`; here it was not used, but others may.
    """

    def __init__(self, tokenizer_json: str, reference: Callable[[Sequence[bytes]], list[list[int]]]) -> None:
        """tokenizer_json: without special tokens; reference: the truth, for the first text of the compiled encoder.

        Raises: whatever gigatoken raises for a tokenizer that it does not know.
        """
        self._json, self._reference = tokenizer_json, reference
        self.erred = False
        self._compiled: CompiledBpe | None = None
        self._candidate: CompiledBpe | None = None  # not compared yet
        self._decided = False  # whether there is a compiled encoder for this tokenizer
        self._chinese = self._compared = 0  # bytes, until that is decided
        alone = multiprocessing.parent_process() is None  # workers have a core each
        self._threads = cores() if alone else 1
        self._parallel = None if cores() > 1 else False  # None: as it likes; a pool of one thread is a detour
        self._start()

    def encode(self, texts: Texts) -> tuple[Ids, Ends]:
        """The ids of all texts in one array, and the exclusive end of each text's ids in it."""
        wanted = self._wanted(texts)
        if self._compiled is None or not wanted.any():
            return self._with_gigatoken(texts)
        ids, ends, refused = self._compiled.encode(_those(texts, wanted), self._threads)
        if not refused.any() and wanted.all():
            return ids, ends
        ends = ends[~refused]
        wanted[np.flatnonzero(wanted)[refused]] = False
        other_ids, other_ends = self._with_gigatoken(_those(texts, ~wanted))
        sizes = np.empty(len(texts), np.int64)
        sizes[wanted], sizes[~wanted] = np.diff(ends, prepend=0), np.diff(other_ends, prepend=0)
        together = np.empty(len(ids) + len(other_ids), np.uint32)
        ours = np.repeat(wanted, sizes)
        together[ours], together[~ours] = ids, other_ids
        return together, np.cumsum(sizes)

    def _with_gigatoken(self, texts: Texts) -> tuple[Ids, Ends]:
        # encode_batch gives an awkward array; its buffers are taken as they are
        layout = self._gigatoken.encode_batch(texts, parallel=self._parallel).layout if texts else None
        if layout is None:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        self._recycle(sum(map(len, texts)))
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        ids = np.asarray(layout.content.data, dtype=np.uint32)[offsets[0] : offsets[-1]]
        return ids, offsets[1:] - offsets[0]

    # --- gigatoken ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        import gigatoken

        self._gigatoken: Any = gigatoken.Tokenizer.from_json(self._json)
        self._since_look = self._size_when_new = 0

    def _recycle(self, characters: int) -> None:
        """Begin with an empty cache once the process has grown by CACHE_BYTES."""
        self._since_look += characters
        if self._since_look < CACHE_CHECK_BYTES and self._size_when_new:
            return
        self._since_look = 0
        size = psutil.Process().memory_info().rss
        self._size_when_new = self._size_when_new or size
        if size - self._size_when_new > CACHE_BYTES:
            self._gigatoken = None  # freed before the new one is made
            self._start()

    # --- the compiled encoder ----------------------------------------------------------------------------------------

    def _wanted(self, texts: Texts) -> npt.NDArray[np.bool_]:
        """Which texts are for the compiled encoder; tries it when there were enough."""
        wanted = np.fromiter(map(is_chinese, texts), np.bool_, len(texts))
        if not self._decided and wanted.any():
            chosen = _those(texts, wanted)
            self._chinese += sum(map(len, chosen))
            if self._chinese >= COMPILED_AFTER:
                self._try(chosen)
        return wanted

    def _try(self, texts: list[bytes]) -> None:
        """Use the compiled encoder once it knows this tokenizer and gave the ids of `tokenizers` for enough text."""
        if self._candidate is None:
            tables = read_tables(orjson.loads(self._json))
            if tables is None:
                self._decided = True
                return
            from pipeline.tokens.compiled_bpe import CompiledBpe  # numba

            self._candidate = CompiledBpe(tables)
        some = next(in_batches_of([text for text in texts if len(text) <= CHECK_MAX], FIRST_BYTES, len), [])
        ids, ends, refused = self._candidate.encode(some)
        self._size_when_new = 0  # what was loaded is no cache of gigatoken's
        taken, rows = _those(some, ~refused), _those(np.split(ids, ends)[:-1], ~refused)
        self.erred = [row.tolist() for row in rows] != self._reference(taken)
        self._compared += sum(map(len, taken))
        self._decided = self.erred or self._compared >= FIRST_BYTES
        if self._decided and not self.erred:
            self._compiled = self._candidate


def _those(texts: Sequence[Any], wanted: npt.NDArray[np.bool_]) -> list[Any]:
    return list(compress(texts, wanted))


def is_chinese(text: str | bytes) -> bool:
    """Whether at least three tenths of the bytes are characters from U+3000 to U+9FFF; False for all that is `str`."""
    if isinstance(text, str) or text.isascii():
        return False
    begins = np.frombuffer(text, np.uint8) - np.uint8(_FIRST)  # smaller ones wrap around
    return 10 * int(np.count_nonzero(begins <= _LAST - _FIRST)) >= len(text)

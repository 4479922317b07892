"""Text to token ids with the fastest encoder that is exact.

gigatoken (fast_encode.py) is 16 to 60 times faster than `tokenizers`, whose ids are the truth here. It is therefore
checked against `tokenizers` on the first documents it meets and on a fixed share of all others, chosen by a checksum of
their text, so that what is checked does not depend on which process encodes what. Where it cannot load a tokenizer, or
one id differs, `tokenizers` takes over and says so.

The text of a special token inside a document (`<|endoftext|>` in a web page) is ordinary text and gets the ids of its
bytes: a corpus must not be able to end a document or to speak in the assistant's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.errors import DataError
from pipeline.progress import log
from pipeline.tokens.fast_encode import CHECK_MAX, FIRST_BYTES, FastEncoder
from pipeline.tokens.special_tokens import end_of_text

Ids = npt.NDArray[np.uint32]
Ends = npt.NDArray[np.int64]

CHECK_ONE_IN = 512  # afterwards one document in so many
SLOW = "tokenizers_only"  # a file that stays beside the tars: the fast encoder was caught giving other ids here


def read_tokenizer_json(folder: Path) -> str:
    """The content of `folder`/tokenizer.json.

    Raises: DataError when it is missing or not text.
    """
    path = folder / "tokenizer.json"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; a tokenizer is a folder with the tokenizer.json of a Hugging Face 'fast' tokenizer"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


class Encoder:
    """Encodes documents; no special token is added or recognised.

    engine: `gigatoken` (and what fast_encode.py has beside it) or `tokenizers`; why: the reason where it is the latter;
    vocab_size: largest id + 1; eos_id: id of the token that ends a text; differed: documents on which the fast encoder
    was caught giving other ids (those before them were not all checked: encode again what must be exact); checked:
    documents compared.
    """

    def __init__(self, tokenizer_json: str, eos_token: str | None, where: str, fast: bool = True) -> None:
        """`where` names the tokenizer in messages; `fast=False` keeps to `tokenizers`; without an eos_token it is good
        for counting only, and eos_id is -1."""
        import tokenizers

        try:
            self._reference = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"{where}: not a tokenizer that `tokenizers` can load ({error})") from None
        self._reference.encode_special_tokens = True  # the text of a special token is text
        self._reference.no_padding()
        self._reference.no_truncation()
        self.vocab_size: int = max(self._reference.get_vocab(with_added_tokens=True).values()) + 1
        eos_id = -1 if eos_token is None else self._reference.token_to_id(eos_token)
        if eos_id is None:
            raise DataError(f"{where}: its end-of-text token {eos_token!r} is not in its vocabulary")
        self.eos_id: int = eos_id
        self.engine, self.why = "tokenizers", ""
        self.begin(0)
        self._fast: FastEncoder | None = None
        self._json = _without_special_tokens(tokenizer_json)
        if fast:
            self._start_fast()

    @classmethod
    def open(cls, folder: Path, fast: bool = True) -> Encoder:
        """The encoder of a tokenizer directory.

        Raises: DataError when tokenizer.json is missing or unreadable, or no end-of-text token is named.
        """
        text = read_tokenizer_json(folder)
        eos_token = end_of_text(folder)
        if eos_token is None:
            raise DataError(
                f"{folder}: names no eos_token; add a tokenizer_config.json with the token that ends a text, "
                'such as {"eos_token": "<|endoftext|>"}'
            )
        return cls(text, eos_token, str(folder), fast)

    def begin(self, seed: int) -> None:
        """Start to check anew, at the first text of a task; seed: of the choice of documents after those."""
        self.seed, self._unchecked = seed, FIRST_BYTES
        self.differed = self.checked = 0

    def encode(self, texts: list[str]) -> list[Ids]:
        """The ids of each text (uint32)."""
        ids, ends = self.encode_batch(texts)
        return np.split(ids, ends[:-1]) if texts else []

    def encode_batch(self, texts: list[str] | list[bytes]) -> tuple[Ids, Ends]:
        """The ids of all texts in one array, and the exclusive end of each text's ids in it: no Python work a token.

        texts: as bytes they must be UTF-8, and go to the encoders as they are.
        """
        if self._fast is None:
            return self._encode_reference(texts)
        ids, ends = self._fast.encode(texts)
        if self._fast.erred or not self._agrees(texts, ids, ends):
            self._fall_back("the fast encoder gave other ids than tokenizers for a document")
            self.differed += 1
            return self._encode_reference(texts)
        return ids, ends

    def decode(self, ids: npt.NDArray[Any]) -> str:
        """The text of `ids`, special tokens shown."""
        text: str = self._reference.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def vocabulary(self) -> dict[str, int]:
        """All tokens as tokenizer.json writes them, and their ids."""
        found: dict[str, int] = self._reference.get_vocab(with_added_tokens=True)
        return found

    def reference_ids(self, texts: Sequence[str | bytes]) -> list[list[int]]:
        """The ids that `tokenizers` gives: the truth."""
        read = [text.decode() if isinstance(text, bytes) else text for text in texts]
        return [one.ids for one in self._reference.encode_batch_fast(read, add_special_tokens=False)]

    def _encode_reference(self, texts: Sequence[str | bytes]) -> tuple[Ids, Ends]:
        rows = self.reference_ids(texts)
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.fromiter((token for row in rows for token in row), dtype=np.uint32, count=int(ends[-1]) if rows else 0)
        return ids, ends

    def _agrees(self, texts: Sequence[str | bytes], ids: Ids, ends: Ends) -> bool:
        chosen = []
        for index, text in enumerate(texts):
            beginning = text[:256]
            if isinstance(beginning, str):
                beginning = beginning.encode(errors="replace")
            drawn = zlib.crc32(beginning, self.seed + len(text)) % CHECK_ONE_IN == 0
            if (self._unchecked > 0 or drawn) and len(text) <= CHECK_MAX:
                self._unchecked -= len(text)
                chosen.append(index)
        if not chosen:
            return True
        self.checked += len(chosen)
        wanted = self.reference_ids([texts[index] for index in chosen])
        starts = np.concatenate(([0], ends[:-1]))
        return all(
            np.array_equal(ids[starts[index] : ends[index]], np.asarray(row, dtype=np.uint32))
            for index, row in zip(chosen, wanted, strict=True)
        )

    def _start_fast(self) -> None:
        try:
            self._fast = FastEncoder(self._json, self.reference_ids)
        except Exception as error:  # gigatoken's Rust side raises several kinds for what it does not know
            self._fall_back(f"gigatoken cannot load this tokenizer ({' '.join(str(error).split())})")
            return
        self.engine = "gigatoken"

    def _fall_back(self, why: str) -> None:
        self._fast, self.engine, self.why = None, "tokenizers", why
        log.warning(f"encoding with tokenizers, slower: {why}")


def with_end_of_text(
    ids: npt.NDArray[Any], ends: npt.NDArray[np.int64], eos_id: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Put the end-of-text token after each document: new ids and exclusive ends."""
    moved = ends + np.arange(1, len(ends) + 1)
    out = np.empty(len(ids) + len(ends), dtype=ids.dtype)
    text = np.ones(len(out), dtype=bool)
    text[moved - 1] = False
    out[text] = ids
    out[moved - 1] = eos_id
    return out, moved


def _without_special_tokens(tokenizer_json: str) -> str:
    """The same tokenizer, for which no text is a special token: gigatoken has no such switch."""
    value = orjson.loads(tokenizer_json)
    value["added_tokens"] = [token for token in value.get("added_tokens") or [] if not token.get("special")]
    return orjson.dumps(value).decode()

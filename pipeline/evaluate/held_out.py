"""What a model is measured on: the held-out documents of the text tars, and the held-out examples of a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.corpus.document import Document, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.encode import Encoder
from pipeline.tokens.text_sizes import by_source
from pipeline.tokens.token_tars import documents as token_documents


@dataclass(frozen=True)
class HeldOutText:
    """The held-out documents of one source, in the order of its tars.

    to_read: how many UTF-8 bytes of them are read (whole documents, at least one).
    """

    source: str
    tars: tuple[Path, ...]
    to_read: int

    def documents(self) -> Iterator[Document]:
        """The documents, one at a time.

        Raises: DataError when a tar is damaged.
        """
        taken = 0
        for tar in self.tars:
            for document in read_text_tar(tar):
                size = len(document.text.encode())
                if taken and taken + size > self.to_read:
                    return
                taken += size
                yield document


@dataclass(frozen=True)
class HeldOutTokens:
    """The same of an imported source, whose text is had by decoding."""

    source: str
    data: TokenData
    encoder: Encoder
    to_read: int

    def documents(self) -> Iterator[Document]:
        """The documents, one at a time, without end-of-text. Raises: DataError when a tar is damaged."""
        taken = 0
        for shard in self.data.index.parts["validation"][self.source]:
            for number, ids in enumerate(token_documents(Path(self.data.folder), shard, self.data.index.dtype)):
                text = self.encoder.decode(ids[:-1] if ids[-1] == self.data.eos_id else ids)
                size = utf8_bytes(text)
                if taken and taken + size > self.to_read:
                    return
                taken += size
                yield Document(text, f"{shard.file}:{number}", self.source)


def held_out_tokens(tokens_folder: Path, encoder: Encoder, max_bytes: int | None) -> list[HeldOutTokens]:
    """As held_out_text, where there is no text but tokens that were imported. Raises: DataError as it does."""
    data = TokenData.open(tokens_folder)
    total = data.bytes("validation")
    if not total:
        raise DataError(
            f"{tokens_folder}: no document was held out, so there is nothing to evaluate on; raise `validation` of "
            "tokenize.imports"
        )
    sizes = {source: data.bytes("validation", source) for source in data.sources("validation")}
    return [
        HeldOutTokens(source, data, encoder, size if max_bytes is None else min(size, -(-max_bytes * size // total)))
        for source, size in sizes.items()
    ]


def held_out_text(text_folder: Path, max_bytes: int | None) -> list[HeldOutText]:
    """The held-out text of each source, in the order of their names.

    Args: text_folder, made by the shard stage; max_bytes, how much to read in all (each source gives its share), or
    None for everything.
    Raises: DataError when nothing was held out.
    """
    sources = by_source(text_tars(text_folder, "validation"))
    counts = manifests.load(text_folder).counts["sources"]
    sizes = {source: int(counts[source]["validation"]["bytes"]) for source in sources}
    total = sum(sizes.values())
    if not total:
        raise DataError(
            f"{text_folder / 'validation'}: no document was held out, so there is nothing to evaluate on; raise "
            "corpus.validation, or give more text"
        )
    return [
        HeldOutText(
            source,
            tuple(tars),
            sizes[source] if max_bytes is None else min(sizes[source], -(-max_bytes * sizes[source] // total)),
        )
        for source, tars in sorted(sources.items())
        if sizes[source]
    ]


def read_examples(
    path: Path, fields: tuple[str, ...], limit: int | None = None, optional: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """Examples of a task, as its fine-tuning prepared them.

    Args: path, JSON lines; fields, the keys that are read; limit, at most so many, chosen by a hash of their `id` and
    kept in the file's order; optional, keys that are read where they stand.
    Raises: DataError naming the file, and the line where one is broken.
    """
    found: list[dict[str, str]] = []
    remedy = f"delete {path.parents[1]} and run its fine-tuning again"
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    value = json.loads(line)
                    present = (*fields, *(field for field in optional if field in value))
                    found.append({field: _as_text(value[field]) for field in present})
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    wanted = ", ".join(fields)
                    raise DataError(f"{path}:{number}: not an example with {wanted} ({error}); {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from None
    if limit is None or len(found) <= limit:
        return found
    chosen = sorted(range(len(found)), key=lambda index: _hash(found[index]["id"]))[:limit]
    return [found[index] for index in sorted(chosen)]


def _as_text(value: Any) -> str:
    """Text as it is; several labels, and numbers, as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hash(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()

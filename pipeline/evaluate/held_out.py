"""What a model is measured on: the held-out documents of the text tars, and the held-out examples of a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError
from pipeline.tokens.text_sizes import by_source


@dataclass(frozen=True)
class HeldOutText:
    """The held-out documents of one source, in the order of its tars.

    to_read: how many UTF-8 bytes of them are read (whole documents, at least one).
    """

    source: str
    tars: tuple[Path, ...]
    to_read: int

    def texts(self) -> Iterator[str]:
        """The documents' texts, one at a time.

        Raises: DataError when a tar is damaged.
        """
        taken = 0
        for tar in self.tars:
            for document in read_text_tar(tar):
                size = len(document.text.encode())
                if taken and taken + size > self.to_read:
                    return
                taken += size
                yield document.text


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


def read_examples(path: Path, fields: tuple[str, ...], limit: int | None = None) -> list[dict[str, str]]:
    """Examples of a task, as its fine-tuning prepared them.

    Args: path, JSON lines; fields, the keys that are read; limit, at most so many, chosen by a hash of their `id` and
    kept in the file's order.
    Raises: DataError naming the file, and the line where one is broken.
    """
    found: list[dict[str, str]] = []
    remedy = f"delete {path.parents[1]} and run its fine-tuning again"
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    value = json.loads(line)
                    found.append({field: str(value[field]) for field in fields})
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    wanted = ", ".join(fields)
                    raise DataError(f"{path}:{number}: not an example with {wanted} ({error}); {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from None
    if limit is None or len(found) <= limit:
        return found
    chosen = sorted(range(len(found)), key=lambda index: _hash(found[index]["id"]))[:limit]
    return [found[index] for index in sorted(chosen)]


def _hash(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()

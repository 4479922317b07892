"""A bounded sample of the training text, spread evenly and the same every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.corpus.document import Document, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar

READ_FACTOR = 8  # at most about so many times the sample is read: of a larger corpus, evenly spaced tars


def source_of(tar: Path) -> str:
    """The source of a text tar `<source>-<split>-<part>.tar` (names of sources hold no hyphen)."""
    return tar.name.rsplit("-", 2)[0]


def by_source(tars: Iterable[Path]) -> dict[str, list[Path]]:
    """Text tars grouped by source, in order."""
    groups: dict[str, list[Path]] = {}
    for tar in tars:
        groups.setdefault(source_of(tar), []).append(tar)
    return groups


def sample_documents(tars: list[Path], sample_bytes: int) -> Iterator[Document]:
    """Documents of at most `sample_bytes` of text in all: each source by its share, evenly from beginning to end.

    Of a corpus more than READ_FACTOR times as large only evenly spaced tars are read. Memory: one document.
    Raises: DataError when a tar is damaged.
    """
    sizes = {tar: tar.stat().st_size for tar in tars}
    total = sum(sizes.values())
    for group in by_source(tars).values():
        held = sum(sizes[tar] for tar in group)
        budget = sample_bytes * held // max(total, 1)
        step = max(1, held // max(READ_FACTOR * budget, 1))
        chosen = group[:: min(step, len(group))]
        # a tar's size exceeds its text's by headers, so that the share errs to the low side where all is wanted
        yield from _evenly(chosen, budget, min(1.0, budget / max(sum(sizes[tar] for tar in chosen), 1)))


def _evenly(tars: list[Path], budget: int, share: float) -> Iterator[Document]:
    """Every document whose turn it is when `share` of the text is to be taken; stops before `budget` is passed."""
    seen = taken = 0
    for tar in tars:
        for document in read_text_tar(tar):
            size = utf8_bytes(document.text)
            seen += size
            if taken + size <= min(share * seen, budget):
                taken += size
                yield document

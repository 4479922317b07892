"""A bounded sample of the training text, spread evenly and the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.corpus.document import Document, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar
from pipeline.tokens.text_sizes import by_source

READ_FACTOR = 8  # at most about so many times the sample is read: of a larger corpus, evenly spaced tars


def sample_documents(sizes: Mapping[Path, float], sample_bytes: int) -> Iterator[Document]:
    """Documents of at most `sample_bytes` of text in all: each source by its share, evenly from beginning to end.

    sizes: bytes of text in each tar. Of a corpus more than READ_FACTOR times as large as the sample only evenly
    spaced tars are read. Memory: one document. Raises: DataError when a tar is damaged.
    """
    total = sum(sizes.values())
    for group in by_source(sizes).values():
        held = sum(sizes[tar] for tar in group)
        budget = sample_bytes * held / total
        step = max(1, int(held / (READ_FACTOR * budget)))
        chosen = group[:: min(step, len(group))]
        yield from _evenly(chosen, budget, budget / sum(sizes[tar] for tar in chosen))


def _evenly(tars: list[Path], budget: float, share: float) -> Iterator[Document]:
    """Every document whose turn it is when `share` of the text is to be taken; stops before `budget` is passed."""
    seen = taken = 0
    for tar in tars:
        for document in read_text_tar(tar):
            size = utf8_bytes(document.text)
            seen += size
            if taken + size <= budget and (share >= 1 or taken + size <= share * seen):
                taken += size
                yield document

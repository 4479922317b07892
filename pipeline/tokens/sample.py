"""A bounded sample of the training text, spread evenly and the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.corpus.document import Document, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar
from pipeline.tokens.text_sizes import by_source

READ_FACTOR = 8  # at most about so many times the sample is read: of a larger corpus, evenly spaced tars


def sample_documents(sizes: Mapping[Path, float], sample_bytes: int) -> Iterator[Document]:
    """Documents of at most `sample_bytes` of text in all: each source by its share, and each language of it, evenly
    from beginning to end.

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
    """Every document whose turn it is when `share` of the text of each language is to be taken; stops before `budget`
    is passed."""
    taken = 0
    seen_of: dict[str | None, int] = {}
    taken_of: dict[str | None, int] = {}
    for tar in tars:
        for document in read_text_tar(tar):
            size, language = utf8_bytes(document.text), document.language
            seen_of[language] = seen_of.get(language, 0) + size
            after = taken_of.get(language, 0) + size
            if taken + size <= budget and (share >= 1 or after <= share * seen_of[language]):
                taken += size
                taken_of[language] = after
                yield document

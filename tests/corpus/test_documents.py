"""Documents in batches: all of them, in order, each batch as small as it can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.document import Document, in_batches


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 50))
def test_batches_end_where_the_characters_are_reached(lengths: list[int], characters: int) -> None:
    documents = [Document("é" * length, str(number), "s") for number, length in enumerate(lengths)]
    batches = list(in_batches(iter(documents), characters))
    assert [document for batch in batches for document in batch] == documents
    for batch in batches[:-1]:
        held = [len(document.text) for document in batch]
        assert sum(held) >= characters > sum(held[:-1])
    assert [] not in batches

"""What counts as a copy across the corpus: near-duplicate documents, repeated lines and paragraphs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from pipeline.settings.section import Fraction, Section


class NearDuplicates(Section):
    """MinHash-LSH (corpus/minhash.py). Defaults: FineWeb's (Penedo et al. 2024), 14 bands of 8, word 5-grams.

    Of pairs at a Jaccard similarity of .8, 92 % share a band; of .9, 99.96 %; of .5, 5 %."""

    ngram: Annotated[int, Field(ge=1, le=64)] = 5
    """Words of a shingle; characters in scripts written without spaces."""
    bands: Annotated[int, Field(ge=1, le=1024)] = 14
    rows: Annotated[int, Field(ge=1, le=128)] = 8
    """Hash values of a band: more of them find fewer, more similar pairs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    min_similarity: Fraction | None = 0.7
    """Documents that share a band are joined where their similarity, as estimated from one bit of each hash value,
    reaches this; `null`: all are, as FineWeb does."""


class RepeatedPieces(Section):
    """Lines (or paragraphs) that several documents have; compared by their words, in lower case."""

    min_characters: PositiveInt = 40
    """Shorter ones stay, however often they come."""
    max_documents: PositiveInt | None = None
    """Those that more documents than this have go from all of them; `null`: the first document keeps them, all others
    lose them."""
    min_left: PositiveInt = 50
    """A document that lost some is dropped when fewer characters than this are left."""

"""The `corpus.decontaminate:` section of a recipe: evaluation sets that no training text may overlap with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings.section import Fraction, Section


class EvaluationSet(Section):
    """One evaluation set; each row (of plain text: each line) is an item."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    path: Annotated[str, Field(min_length=1)]
    """File, folder or glob pattern; with `type: huggingface` a hub name, a local folder or a builder."""
    type: Literal["auto", "jsonl", "csv", "tsv", "text", "huggingface"] = "auto"
    """`auto`: as the files' names end (.jsonl .ndjson .csv .tsv .txt, with .gz or .zst too)."""
    columns: tuple[str, ...] = ("text",)
    """What of a row counts, each by itself: `[question, choices]`; `answers.text` reaches into objects. Lists are
    taken element by element."""
    config: str | None = None
    revision: str | None = None
    split: str = "test"
    data_files: str | None = None


class Decontaminate(Section):
    """Documents that share `ngram` words in a row with an item go (GPT-3, Brown et al. 2020, appendix C: 13 words).

    Words are compared without case and punctuation. In scripts written without spaces each character is a word.
    """

    sets: Annotated[tuple[EvaluationSet, ...], Field(min_length=1)]
    ngram: Annotated[int, Field(ge=4, le=100)] = 13
    """Words in a row. Items with fewer are not looked for; they are counted."""
    min_share: Fraction = 0.0
    """Share of an item's n-grams that a document must hold; 0: one is enough."""
    remove: Literal["document", "passage"] = "document"
    """What goes: the document, or the words in common alone."""

    @model_validator(mode="after")
    def _names_differ(self) -> Decontaminate:
        names = [one.name for one in self.sets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two evaluation sets are named '{name}'; give each its own name")
        return self

"""The `corpus:` section of a recipe: sources, rules, the split into training and validation text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.settings.decontaminate import Decontaminate
from pipeline.settings.duplicates import NearDuplicates, RepeatedPieces
from pipeline.settings.mix import Mix
from pipeline.settings.privacy import Privacy
from pipeline.settings.rules import SETS, Rules
from pipeline.settings.section import Count, Fraction, Section, no_effect
from pipeline.settings.sources import Source


class Corpus(Section):
    """The shard stage: sources in, text tars out."""

    sources: tuple[Source, ...] = ()
    """Where text comes from."""
    mix: Mix = Mix()
    """How the sources are mixed in pretraining."""
    normalize: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalisation form."""
    languages: dict[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], Fraction | None] = Field({})
    """Languages that stay, `[en, zh]` or with the least score of each, `{en: 0.65, zh: 0.7}` (`null`: as published).

    Documents whose source does not state a language are identified by their text, programs are not. Empty: none is."""
    signals: Literal["none", "write", "keep"] = "none"
    """`write`: all signals of each document beside it, in its metadata, or with what is kept of a dropped one. `keep`:
    all documents with their signals in signals/, from where other thresholds and languages are decided without
    reading the sources again; personal data is taken out before the rules then."""
    rules: Rules = Rules()
    decontaminate: Decontaminate | None = None
    """Evaluation sets that no document may overlap with."""
    privacy: Privacy | None = None
    """Personal data and secrets replaced, or documents with them dropped; `standard`: all types replaced."""
    drop_duplicates: bool = True
    """Drop documents whose normalised text was seen before, in any source."""
    near_duplicates: NearDuplicates | None = None
    """Drop documents that resemble a longer one, in any source; `standard`: with FineWeb's parameters."""
    duplicate_lines: RepeatedPieces | None = None
    """Take out lines that other documents have; `standard`: with the defaults."""
    duplicate_paragraphs: RepeatedPieces | None = None
    """Take out paragraphs (lines between blank lines) that other documents have."""
    validation: Fraction = 0.01
    """Share of documents held out, chosen by a hash of the text."""
    validation_max_bytes: PositiveInt | None = None
    """Upper bound of the validation set, in bytes of text; what exceeds it goes to training."""
    split_bytes: PositiveInt = 64 * 1024 * 1024
    """Input is cut into tasks of about so many bytes; each task makes its own tars."""
    shard_bytes: PositiveInt = 256 * 1024 * 1024
    """A text tar is closed once it holds so many bytes of text."""
    bad_lines: Literal["fail", "drop"] = "fail"
    """What a broken line or record does: end the stage, or be dropped and counted."""
    bad_files: Literal["fail", "skip"] = "fail"
    """What a file does that cannot be read (to its end): end the stage, or be passed over and counted (`bad_file`)."""
    repair: bool = True
    """Undo mojibake (UTF-8 that was once decoded as something else), but in code. Other lines stay bit for bit."""
    memory_bytes: Annotated[int, Field(ge=1 << 20)] = no_effect(512 * 1024 * 1024)
    """What a process may take for looking at all documents together (copies, clusters), beside the program itself.

    Less of it makes more tasks that compare, each of which opens a file of every split: with very much text raise both
    this and `split_bytes`."""
    workers: Count = no_effect(0)
    """Processes; 0 is one a core. The output does not depend on it."""

    @property
    def comparisons(self) -> tuple[str, ...]:
        """The parallel steps between reading and writing: each looks for a kind of copies in all documents."""
        pieces = self.duplicate_lines or self.duplicate_paragraphs
        return (*(["documents"] if self.near_duplicates else []), *(["lines"] if pieces else []))

    @field_validator("privacy", "near_duplicates", "duplicate_lines", "duplicate_paragraphs", mode="before")
    @classmethod
    def _standard(cls, value: Any) -> Any:
        return {} if value == "standard" else value

    @field_validator("languages", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return dict.fromkeys(value) if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _names_differ(self) -> Corpus:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'; give each its own name")
        return self

    @model_validator(mode="after")
    def _sets_judge(self) -> Corpus:
        for source in self.sources:
            for name in source.rule_sets or ():
                if getattr(self.rules, name) is None:
                    raise ValueError(f"source {source.name}: rule_sets names {name}, which rules do not switch on")
        if self.sources and self.rules.code is not None and not any("code" in one.judged_by for one in self.sources):
            raise ValueError(
                "rules.code is on, but judges no source: none is of type code, nor has it in its rule_sets"
            )
        return self

    def rules_for(self, source: Source) -> Rules:
        """The rules that judge a source's documents."""
        return self.rules.model_copy(update=dict.fromkeys(set(SETS) - set(source.judged_by)))

    def languages_for(self, source: Source) -> dict[str, float | None]:
        """The languages that its documents must be in; empty: they are not asked."""
        return {} if source.holds_code else self.languages

"""What a document passes after the rules: evaluation sets, then privacy. What rules dropped is scrubbed too."""

from __future__ import annotations

from pathlib import Path

from pipeline.corpus.document import Document, Dropped
from pipeline.settings.corpus import Corpus


class Screen:
    """The steps after the rules that a recipe switches on. Use as a function.

    parts: the folder with the table of evaluation sets (decontamination/table.py), where the recipe names any.
    """

    def __init__(self, corpus: Corpus, parts: Path) -> None:
        self._decontaminate = self._scrub = None
        if corpus.decontaminate is not None:
            from pipeline.corpus.decontamination.step import Decontaminator

            self._decontaminate = Decontaminator(corpus.decontaminate, parts)
        if corpus.privacy is not None:
            from pipeline.corpus.privacy.scrub import Scrubber

            self._scrub = Scrubber(corpus.privacy)

    def __call__(self, found: Document | Dropped, judged: Document | Dropped) -> Document | Dropped:
        """found: as it was read (and normalised); judged: what the rules made of it."""
        if self._decontaminate is not None and isinstance(judged, Document):
            judged = self._decontaminate(judged)
        if self._scrub is None:
            return judged
        if isinstance(judged, Document):
            return self._scrub(judged)
        return self._scrub.dropped(found, judged) if isinstance(found, Document) else self._scrub.unread(judged)

"""What any model that writes texts must beat: copying what it was given, and the first sentence of that."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.evaluate.text_metrics import text_metrics

# A sentence ends behind . ! ? (and closing quotes or brackets) before white space, behind 。！？ wherever they stand,
# before an empty line, and where the text does. An abbreviation ends one too early: a baseline may.
SENTENCE = re.compile(r"""\S.*?(?:[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+["'”’」』）]*|(?=\n\s*\n)|$)""", re.DOTALL)


def lead_sentence(text: str) -> str:
    """The first sentence of a text, English or Chinese; all of it where none ends."""
    found = SENTENCE.search(text.rstrip())
    return found.group() if found else ""


def text_baselines(references: Sequence[str], sources: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics (`text_metrics`) of `copy_source` and `lead_sentence`."""
    said = {"copy_source": list(sources), "lead_sentence": [lead_sentence(source) for source in sources]}
    return {name: text_metrics(references, texts).values for name, texts in said.items()}

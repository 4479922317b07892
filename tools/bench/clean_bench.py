"""The English chain of rules (Gopher repetition, Gopher quality, C4, FineWeb, personal data) beside datatrove's.

Both get the same documents from memory, one after the other, and keep each or name the rule that drops it. datatrove
splits words with spaCy and finds sentences with its sentencizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import version
from measure import Contender, Outcome, measure
from texts import Corpus, read_jsonl

SETS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
KINDS = ("documentation", "comments", "mail", "prose", "input")
_NEEDS = ("spacy", "tldextract")  # of datatrove, for its English words and filters


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    Corpus.add_options(parser)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N disagreements in full")


def run(options: argparse.Namespace) -> Outcome:
    """Measure both, compare their decisions."""
    from agreement import agreement_lines

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        corpus = Corpus.gather(options, Path(folder), KINDS)
        settings = {"documents": str(corpus.path)}
        contenders = [Contender("Headwater", "clean_bench:ours", settings=settings)]
        if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
            print(f"datatrove needs {', '.join(missing)}: left out (pip install -e '.[bench]')")
        else:
            contenders.append(Contender("datatrove", "clean_bench:datatrove", "datatrove", settings))
        found = [one for one in map(measure, contenders) if one]
        decisions = {one.name: one.result.pop("decisions") for one in found}
        facts: dict[str, Any] = {"kinds": corpus.kinds, "peers": {name: version(name) for name in _NEEDS}}
        lines: list[str] = []
        if len(found) == 2:
            documents = list(read_jsonl(corpus.path))
            lines, agreement = agreement_lines(documents, decisions["Headwater"], decisions["datatrove"], options.show)
            facts |= agreement
    return Outcome(found, "datatrove", lines, facts)


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Headwater's judge and scrubber, compiled."""
    from pipeline.corpus.document import Document, Dropped
    from pipeline.corpus.rules import PLAIN, Judge
    from pipeline.corpus.screen import Screen
    from pipeline.recipe import Corpus

    rules = dict.fromkeys(PLAIN) | {"sets": SETS, "c4": {"end_punctuation": False}}
    types = dict.fromkeys(("financial", "identity", "secrets", "phone"), "keep")  # datatrove: addresses alone
    corpus = Corpus.model_validate({"rules": rules, "privacy": types})
    judge, screen = Judge(corpus.rules), Screen(corpus, Path())
    texts = [document["text"] for document in read_jsonl(settings["documents"])]

    def decide(text: str) -> list[Any]:
        document = Document(text, "", "", "en")
        judged = judge(document)
        if isinstance(judged, Dropped):
            return [judged.rule, judged.value, judged.threshold]
        screen(document, judged)
        return ["kept", None, None]

    for text in texts[:20]:  # compiled functions are loaded
        decide(text)
    screen(found := Document("a@b.org", "", "", "en"), found)

    return lambda: _result(texts, [decide(text) for text in texts])


def datatrove(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """datatrove's filters as FineWeb set them, called one after the other without its bookkeeping."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter

    filters = (
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    )
    pii = PIIFormatter()
    texts = [document["text"] for document in read_jsonl(settings["documents"])]

    def judge(text: str) -> str:
        document = Document(text=text, id="")
        for name, one in zip(SETS, filters, strict=True):
            answer = one.filter(document)
            if answer is not True:
                return f"{name}.{answer[1] if isinstance(answer, tuple) else 'dropped'}"
        document.text = pii.format(document.text)
        return "kept"

    for text in texts[:20]:
        judge(text)

    def work() -> dict[str, Any]:
        return _result(texts, [[judge(text), None, None] for text in texts])

    return work


def _result(texts: list[str], decisions: list[list[Any]]) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts)
    return {"bytes": size, "documents": len(texts), "decisions": decisions}

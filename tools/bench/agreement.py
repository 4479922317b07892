"""Where two chains of rules decide differently on a document, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

Decision = Sequence[Any]  # [rule or "kept", value or None, threshold or None]
_NEAR = 0.05  # share of a threshold
# What the two count differently, by the rule that tells them apart.
_CAUSES = {
    "gopher_quality": "words: spaCy has a list that stays whole (`Inc.`, `and/or`, `):`), here marks are words",
    "gopher_repetition": "words: n-grams of words that spaCy splits in another way",
    "c4": "sentences: spaCy's sentencizer ends one at marks of its list, here at Unicode's, not after initials",
    "fineweb": "lines: what C4's step left of the document differs, or its words",
}


def agreement_lines(
    documents: Sequence[dict[str, Any]], ours: Sequence[Decision], theirs: Sequence[Decision], show: int
) -> tuple[list[str], dict[str, Any]]:
    """Markdown lines and facts: the share of documents on which both keep or both drop, by kind; the rest by class.

    A class is the rule that drops on one side alone, and how far its value is from the threshold. show: how many
    disagreements to print in full.
    """
    kinds: dict[str, list[int]] = {"all": [0, 0]}
    classes: Counter[tuple[str, str, str]] = Counter()
    shown: list[str] = []
    for document, mine, other in zip(documents, ours, theirs, strict=True):
        same = (mine[0] == "kept") == (other[0] == "kept")
        for kind in (document["kind"], "all"):
            counts = kinds.setdefault(kind, [0, 0])
            counts[0] += 1
            counts[1] += same
        if not same:
            classes[mine[0], other[0], _distance(mine)] += 1
            if len(shown) < show:
                shown.append(f"- {document['id']}: ours {mine}, theirs {other[0]}: {document['text'][:300]!r}")
    shares = {kind: same / count for kind, (count, same) in kinds.items()}
    lines = ["Keep or drop agrees on:", ""]
    lines += [f"- {kind}: {share:.2%} of {kinds[kind][0]:,} documents" for kind, share in shares.items()]
    lines += [
        "",
        "| Headwater | datatrove | value | documents | what is counted differently |",
        "|---|---|---|---:|---|",
    ]
    for (mine, other, distance), count in classes.most_common():
        cause = _CAUSES[(other if mine == "kept" else mine).partition(".")[0]]
        lines.append(f"| {mine} | {other} | {distance} | {count:,} | {cause} |")
    found = {" / ".join(names): count for names, count in classes.items()}
    return [*lines, "", *shown], {"agreement": shares, "disagreements": found}


def _distance(mine: Decision) -> str:
    """How far our value is from the threshold, where it is our rule that drops."""
    _, value, threshold = mine
    if not isinstance(value, (int, float)) or not isinstance(threshold, (int, float)):
        return "passes here"
    near = abs(value - threshold) <= max(_NEAR * threshold, 1 if isinstance(value, int) else 0)
    return "at the threshold" if near else "beyond it"

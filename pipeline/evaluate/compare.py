"""Two models on the same held-out data: how far apart they are, and whether chance alone could do it.

What is compared are the records of two evaluations (records.py), document by document and example by example; what only
one of them has is left out and told. Intervals and p-values are of the difference, ours less theirs: a paired
bootstrap, and a permutation test of pairs (confidence.py); for BLEU, chrF and TER p is that of sacrebleu's paired
bootstrap (Koehn 2004), which takes some 70 KB of memory an example.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluate.classification import AVERAGES, macro_f1, macro_f1_of_resamples
from pipeline.evaluate.confidence import RESAMPLES, interval, mean, paired_p, ratio
from pipeline.evaluate.records import Row, read_records
from pipeline.evaluate.text_metrics import ScoreDifference, bleu_tokenizer, corpus_metrics, rouge
from pipeline.files import write_json
from pipeline.progress import log

COMPARISONS = "comparisons"
Pairs = list[tuple[Row, Row]]  # ours and theirs, of the same document or example
Found = dict[str, Any]


def compare_runs(ours: Path, theirs: Path) -> Found:
    """Compare two runs that were evaluated, and keep the result in `comparisons/<theirs>.json` of ours.

    Returns: part of the evaluation → `examples` (or documents) in both, and metric → ours, theirs, difference,
    interval (95%, of the difference), p (two-sided); these two are None where one example is in both.
    Raises: DataError when one has no evaluation, or they have no held-out example in common.
    """
    mine, others = (_parts(folder) for folder in (ours, theirs))
    found: Found = {}
    for name in mine:
        if name not in others:
            log.warning("evaluate: %s is only in %s: left out", name, ours)
            continue
        rows = read_records(mine[name]), read_records(others[name])
        if kinds := {_kind(row) for side in rows for row in side[:1]}:
            kind = kinds.pop()
            if kinds:
                raise DataError(f"{name} is another kind of task in {ours} than in {theirs}; rename it in one of them")
            pairs = _paired(kind, *rows)
            log.info("evaluate: %s: %d of %d and %d are in both", name, len(pairs), *map(len, rows))
            if pairs:
                found[name] = {"examples": len(pairs), **COMPARED[kind](pairs)}
    if not found:
        raise DataError(
            f"{ours} and {theirs} were measured on different held-out data, nothing is in both; evaluate both with the "
            "same corpus and seed"
        )
    result = {"ours": str(ours), "theirs": str(theirs), "parts": found}
    write_json(file_of(ours, theirs), result)
    return result


def file_of(ours: Path, theirs: Path) -> Path:
    """Where a comparison is kept."""
    return ours / COMPARISONS / f"{theirs.resolve().name}.json"


def comparison_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """A comparison as flat metrics: `<part>/<metric>/difference`, `low` and `high` (its interval) and `p`."""
    found: dict[str, float] = {}
    for name, part in result["parts"].items():
        for metric, row in part.items():
            if isinstance(row, Mapping):
                low, high = row["interval"] or (None, None)
                numbers = {"difference": row["difference"], "low": low, "high": high, "p": row["p"]}
                found |= {
                    f"{name}/{metric}/{key}": value
                    for key, value in numbers.items()
                    if value is not None and math.isfinite(value)
                }
    return found


def comparison_lines(result: Mapping[str, Any]) -> list[str]:
    """A comparison as a table to print."""
    lines = [f"{result['ours']} against {result['theirs']}; difference with its 95% interval"]
    for name, part in result["parts"].items():
        lines.append(f"{name} ({part['examples']:,} in both)")
        for metric, row in part.items():
            if isinstance(row, Mapping):
                sure = "[{:+.4f}, {:+.4f}]".format(*row["interval"]) if row["interval"] else "–"
                p = "–" if row["p"] is None else f"{row['p']:.3f}"
                lines.append(
                    f"  {metric:<14} {row['ours']:>9.4f} {row['theirs']:>9.4f}  {row['difference']:>+9.4f} "
                    f"{sure}  p {p}"
                )
    return lines


def _parts(run: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted((run / "evaluation").glob("*.jsonl"))}
    if not found:
        raise DataError(
            f"{run}: no evaluation there to compare with (evaluation/*.jsonl); give a recipe or the folder of a run on "
            "which `pipeline evaluate` was done"
        )
    return found


def _kind(row: Row) -> str:
    if "predicted" in row:
        return {list: "labels", float: "numbers"}.get(type(row["predicted"]), "classes")
    return "language" if "nats" in row else "text"


def _paired(kind: str, ours: Sequence[Row], theirs: Sequence[Row]) -> Pairs:
    """Rows of the same document or example; where equal ones stand several times, in their order."""
    fields = {"language": ("text",), "text": ("prompt", "reference")}.get(kind, ("text", "label"))

    def named(rows: Sequence[Row]) -> Iterator[tuple[tuple[Any, ...], Row]]:
        seen: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            key = tuple(row[field] for field in fields)
            seen[key] += 1
            yield (*key, seen[key]), row

    known = dict(named(theirs))
    return [(row, known[key]) for key, row in named(ours) if key in known]


def _language(pairs: Pairs) -> Found:
    """Bits per byte over all documents. p: of their mean cost, each document's swapped at random."""
    a, b = (np.array([pair[side]["nats"] for pair in pairs]) / math.log(2) for side in (0, 1))
    sizes = np.array([row["bytes"] for row, _ in pairs])
    row = _row(float(ratio(a, sizes)), float(ratio(b, sizes)), interval(ratio, a - b, sizes), paired_p(_mean_gap, a, b))
    return {"bits_per_byte": row}


def _text(pairs: Pairs) -> Found:
    from sacrebleu.significance import PairedTest

    references = [row["reference"] for row, _ in pairs]
    answers = [[pair[side]["finetuned"] for pair in pairs] for side in (0, 1)]
    found: Found = {}
    scores = [rouge(references, answer) for answer in answers]
    for name in scores[0]:
        a, b = (np.array(one[name]) for one in scores)
        found[name] = _row(float(a.mean()), float(b.mean()), interval(mean, a - b), paired_p(_mean_gap, a, b))
    metrics = corpus_metrics(bleu_tokenizer(references))
    systems = [("theirs", answers[1]), ("ours", answers[0])]
    results = PairedTest(systems, metrics, [references], test_type="bs", n_samples=RESAMPLES)()[1]
    p_values = [result[1].p_value for name, result in results.items() if name != "System"]  # in the metrics' order
    for (name, metric), p in zip(metrics.items(), p_values, strict=True):
        gap = ScoreDifference(metric, references, *answers)
        ours, theirs = gap.both
        sure = interval(gap, range(len(pairs)), vectorized=False)
        found[name] = _row(ours, theirs, sure, float(p) if sure else None)  # of one example, neither
    return found


def _classes(pairs: Pairs) -> Found:
    names = [(mine["label"], mine["predicted"], other["predicted"]) for mine, other in pairs]
    numbers = {label: number for number, label in enumerate(sorted({label for row in names for label in row}))}
    true, a, b = (np.array([numbers[row[column]] for row in names]) for column in range(3))
    right = [(side == true).astype(float) for side in (a, b)]
    sure = interval(mean, right[0] - right[1])

    def gap(true: Any, a: Any, b: Any, axis: int = -1) -> Any:
        return macro_f1_of_resamples(true, a, axis) - macro_f1_of_resamples(true, b, axis)

    return {
        "accuracy": _row(float(right[0].mean()), float(right[1].mean()), sure, paired_p(_mean_gap, *right)),
        "macro_f1": _row(
            macro_f1(true, a),
            macro_f1(true, b),
            interval(gap, true, a, b),
            paired_p(lambda a, b, axis: gap(true, a, b, axis), a, b),
        ),
    }


def _labels(pairs: Pairs) -> Found:
    """Several labels at once. accuracy: of all labels of a text; the two F1 over all labels that occur or are given."""
    from sklearn.metrics import f1_score

    rows = [(json.loads(mine["label"]), mine["predicted"], other["predicted"]) for mine, other in pairs]
    names = sorted({label for row in rows for labels in row for label in labels})
    # Resampling and swapping work on one number a text: the place of its set of labels in a table of 0 and 1.
    places: dict[tuple[str, ...], int] = {}
    true, a, b = (
        np.array([places.setdefault(tuple(sorted(row[column])), len(places)) for row in rows]) for column in range(3)
    )
    table = np.array([[name in labels for name in names] for labels in places], dtype=np.int64)
    right = [(side == true).astype(float) for side in (a, b)]
    sure = interval(mean, right[0] - right[1])
    found = {"accuracy": _row(float(right[0].mean()), float(right[1].mean()), sure, paired_p(_mean_gap, *right))}
    for average in AVERAGES if names else ():

        def f1(true: Any, said: Any, average: str = average) -> float:
            return float(f1_score(table[true], table[said], average=average, zero_division=0))

        def gap(true: Any, a: Any, b: Any, f1: Callable[..., float] = f1) -> float:
            return f1(true, a) - f1(true, b)

        found[f"{average}_f1"] = _row(
            f1(true, a),
            f1(true, b),
            interval(gap, true, a, b, vectorized=False),
            paired_p(lambda a, b, gap=gap: gap(true, a, b), a, b, vectorized=False),
        )
    return found


def _numbers(pairs: Pairs) -> Found:
    """Regression: errors, of which less is better."""
    true = np.array([float(mine["label"]) for mine, _ in pairs])
    off = [np.abs(np.array([pair[side]["predicted"] for pair in pairs]) - true) for side in (0, 1)]
    (our_root, their_root), (our_mean, their_mean) = (
        [float(statistic(side)) for side in off] for statistic in (_root_mean_square, np.mean)
    )
    return {
        "rmse": _row(our_root, their_root, interval(_root_gap, *off), paired_p(_root_gap, *off)),
        "mae": _row(our_mean, their_mean, interval(mean, off[0] - off[1]), paired_p(_mean_gap, *off)),
    }


def _root_mean_square(errors: Any, axis: int = -1) -> Any:
    return np.sqrt(np.mean(np.square(errors), axis=axis))


def _root_gap(ours: Any, theirs: Any, axis: int = -1) -> Any:
    return _root_mean_square(ours, axis) - _root_mean_square(theirs, axis)


def _mean_gap(ours: Any, theirs: Any, axis: int = -1) -> Any:
    return np.mean(ours - theirs, axis=axis)


def _row(ours: float, theirs: float, sure: list[float] | None, p: float | None) -> Found:
    return {"ours": ours, "theirs": theirs, "difference": ours - theirs, "interval": sure, "p": p}


COMPARED = {"language": _language, "text": _text, "classes": _classes, "labels": _labels, "numbers": _numbers}

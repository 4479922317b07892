"""Two evaluations beside each other: pairs by content, hand-worked differences, exact p-values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from sklearn.metrics import f1_score

from pipeline.cli import main
from pipeline.errors import DataError
from pipeline.evaluate.compare import compare_runs, comparison_lines, comparison_numbers
from pipeline.evaluate.records import text_hash, write_records


def write(run: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    write_records(run / "evaluation" / f"{name}.jsonl", rows)
    return run


def costs(nats: list[float]) -> list[dict[str, Any]]:
    return [
        {"text": text_hash(str(n)), "source": "a", "language": "en", "bytes": 10, "tokens": 3, "nats": value}
        for n, value in enumerate(nats)
    ]


def test_bits_per_byte_by_hand(tmp_path: Path) -> None:
    ours = write(tmp_path / "a", "language_model", costs([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    theirs = write(
        tmp_path / "b", "language_model", [*costs([2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[::-1], *costs([9.0] * 7)[6:]]
    )
    result = compare_runs(ours, theirs)
    part = result["parts"]["language_model"]
    row = part["bits_per_byte"]
    assert part["examples"] == 6  # the seventh is only theirs
    assert row["ours"] == pytest.approx(21 / 60 / math.log(2))
    assert row["difference"] == pytest.approx(-6 / 60 / math.log(2))
    assert row["interval"] == pytest.approx([row["difference"]] * 2)  # each document is one nat cheaper
    assert row["p"] == pytest.approx(2 / 2**6)  # only all swapped, and none, are as far apart
    assert json.loads((ours / "comparisons/b.json").read_text()) == result
    assert any("bits_per_byte" in line and "p 0.031" in line for line in comparison_lines(result))


def test_text_metrics_are_the_libraries_own(tmp_path: Path) -> None:
    references = [
        "the cat sat on the mat",
        "a dog ran far away today",
        "birds sing in the old tree",
        "我喜歡讀書和寫字",
    ]
    better = ["the cat sat on a mat", "a dog ran far away", "birds sing in the tree", "我喜歡讀書和畫畫"]
    worse = ["cat mat", "the dog is here today", "no birds", "他愛畫畫"]

    def rows(answers: list[str]) -> list[dict[str, Any]]:
        columns = zip(references, answers, strict=True)
        return [{"id": r, "prompt": "p", "reference": r, "base": "", "finetuned": text} for r, text in columns]

    result = compare_runs(write(tmp_path / "a", "x", rows(better)), write(tmp_path / "b", "x", rows(worse)))
    found = result["parts"]["x"]
    assert found["bleu"]["ours"] == pytest.approx(sacrebleu.corpus_bleu(better, [references]).score)
    assert found["chrf"]["theirs"] == pytest.approx(sacrebleu.corpus_chrf(worse, [references]).score)
    assert found["rougeL"]["p"] == 2 / 2**4
    low, high = found["chrf"]["interval"]
    assert 0 < low < found["chrf"]["difference"] < high
    same = compare_runs(tmp_path / "a", tmp_path / "a")["parts"]["x"]
    assert all(row["difference"] == 0 for name, row in same.items() if name != "examples")
    assert same["rougeL"]["p"] == 1


def test_classes(tmp_path: Path) -> None:
    labels = ["y", "n", "y", "n", "y", "n"]

    def rows(predicted: list[str]) -> list[dict[str, Any]]:
        columns = enumerate(zip(labels, predicted, strict=True))
        return [{"id": n, "text": text_hash("t"), "label": label, "predicted": guess} for n, (label, guess) in columns]

    wrong = ["n", "y", "y", "n", "y", "n"]
    result = compare_runs(write(tmp_path / "a", "x", rows(labels)), write(tmp_path / "b", "x", rows(wrong)))
    found = result["parts"]["x"]
    assert (found["accuracy"]["ours"], found["accuracy"]["theirs"]) == (1.0, pytest.approx(4 / 6))
    assert found["accuracy"]["p"] == pytest.approx(0.5)  # McNemar's exact test of 2 against 0
    assert found["macro_f1"]["theirs"] == f1_score(labels, wrong, average="macro")


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (costs([1.0])[0], {"nats": 2.0}),
        ({"prompt": "p", "reference": "the cat sat", "finetuned": "the cat sat"}, {"finetuned": "a dog"}),
        ({"text": "t", "label": "y", "predicted": "y"}, {"predicted": "n"}),
        ({"text": "t", "label": '["y"]', "predicted": ["y"]}, {"predicted": ["n"]}),
        ({"text": "t", "label": "1.0", "predicted": 1.0}, {"predicted": 2.0}),
    ],
    ids=["language", "text", "classes", "labels", "numbers"],
)
def test_of_one_pair_only_the_difference_is_told(tmp_path: Path, row: dict[str, Any], change: dict[str, Any]) -> None:
    ours, theirs = write(tmp_path / "a", "x", [row]), write(tmp_path / "b", "x", [row | change])
    result = compare_runs(ours, theirs)
    rows = [row for row in result["parts"]["x"].values() if isinstance(row, dict)]
    assert rows and all((row["interval"], row["p"]) == (None, None) for row in rows)
    assert "NaN" not in (ours / "comparisons/b.json").read_text()
    assert all(name.endswith("/difference") for name in comparison_numbers(result))
    assert all(line.endswith(" –  p –") for line in comparison_lines(result)[2:])


def test_nothing_in_common_and_no_evaluation_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = write(tmp_path / "a", "language_model", costs([1.0]))
    other = [row | {"text": "else"} for row in costs([1.0])]
    with pytest.raises(DataError, match="nothing is in both"):
        compare_runs(ours, write(tmp_path / "b", "language_model", other))
    with pytest.raises(DataError, match="another kind of task"):
        kind = {"id": 0, "text": "t", "label": "y", "predicted": "y"}
        compare_runs(ours, write(tmp_path / "c", "language_model", [kind]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(ours), "--against", str(tmp_path / "empty")])
    assert stop.value.code == 2
    assert "no evaluation there to compare with" in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = write(tmp_path / "a", "language_model", costs([1.0, 2.0]))
    theirs = write(tmp_path / "b", "language_model", costs([2.0, 2.0]))
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(ours), "--against", str(theirs)])
    assert stop.value.code == 0
    assert "bits_per_byte" in capsys.readouterr().out

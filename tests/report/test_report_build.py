"""The report: complete, escaped, the same for the same run, and honest about what is missing."""

from __future__ import annotations

import html.parser
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.report.build import REPORT, cut, duration, number, short, write_report

CHINESE = "春江潮水连海平，海上明月共潮生。"  # in the fixture's samples


class Page(html.parser.HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_finished_run_shows_its_numbers(reported: Recipe) -> None:
    page = Page((reported.workdir / REPORT).read_text(encoding="utf-8"))
    for shown in ("1.398", "bits per byte", "xz -9 1.620", "0.222", "before fine-tuning 0.081", "81.0%", "3,013"):
        assert shown in page.text, shown
    for rule in ("min_characters", "duplicate", "empty"):
        assert rule in page.text
    assert CHINESE in page.text and "诗词" in page.text
    assert "Not made yet" not in page.text


def test_text_from_corpora_is_only_text(reported: Recipe) -> None:
    text = (reported.workdir / REPORT).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert '<script>alert("x")</script>' in page.text  # shown as text, in a sample
    assert "\x01" not in text
    assert "default-src 'none'" in text
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all((value or "").startswith("#") for value in links), links


def test_pictures_are_well_formed_and_escaped(reported: Recipe) -> None:
    found = {path.stem: path for path in (reported.workdir / "logs" / "plots").glob("*.svg")}
    expected = {
        "funnel",
        "funnel.sources.1",
        "funnel.languages.0",
        "documents",
        "dropped",
        "bits_per_byte",
        "lineage",
        "pretrain.loss",
        "evaluation.package",
        "calibration.package",
    }
    assert expected <= set(found)
    for path in found.values():
        tags = {element.tag.rsplit("}", 1)[-1] for element in ElementTree.parse(path).iter()}
        assert "script" not in tags
    funnel = "".join(ElementTree.parse(found["funnel"]).getroot().itertext())
    assert funnel.index("read") < funnel.index("empty") < funnel.index("min_characters") < funnel.index("duplicate")
    assert "3,013" in funnel and "−119 (3.9%)" in funnel and "2,801" in funnel
    spoken = ["".join(ElementTree.parse(found[f"funnel.languages.{n}"]).getroot().itertext()) for n in (0, 1)]
    assert "Language en" in spoken[0] and '<script>alert("x")' in spoken[1]  # as text
    matrix = "".join(ElementTree.parse(found["evaluation.package"]).getroot().itertext())
    assert "诗词" in matrix and "<script>" in matrix  # as text


def test_the_harness_and_other_runs_are_shown(finished: Recipe) -> None:
    write_json(
        finished.workdir / "harness" / "results.json",
        {"results": {"rivers": {"acc,none": 0.75, "acc_stderr,none": 0.25, "em,strict": 0.5, "alias": "rivers"}}},
    )
    row = {"ours": 1.25, "theirs": 1.5, "difference": -0.25, "interval": [-0.375, -0.125], "p": 0.031}
    parts = {"language_model": {"examples": 6, "bits_per_byte": row}}
    write_json(finished.workdir / "comparisons/b.json", {"ours": "runs/a", "theirs": "runs/<b>", "parts": parts})
    page = write_report(finished).read_text(encoding="utf-8")
    assert "<th>rivers</th><td>acc</td><td>0.75</td><td>0.25</td>" in page
    assert "<td>em (strict)</td><td>0.5</td><td>–</td>" in page
    assert "Against runs/&lt;b&gt;" in page
    assert "<td>-0.25</td><td>-0.375 – -0.125</td><td>0.031</td>" in page


def test_the_same_run_gives_the_same_bytes_and_no_second_work(finished: Recipe) -> None:
    path = write_report(finished)
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert write_report(finished).stat().st_mtime_ns == stamp  # it shows all that there is
    path.unlink()
    assert write_report(finished).read_bytes() == first
    (finished.workdir / "evaluation" / "samples.json").write_text("[]", encoding="utf-8")
    assert write_report(finished).read_bytes() != first


def test_missing_stages_are_said_to_be_missing(finished: Recipe) -> None:
    for folder in ("checkpoints", "model", "finetune", "evaluation", "tokens"):
        shutil.rmtree(finished.workdir / folder)
    page = Page(write_report(finished).read_text(encoding="utf-8"))
    assert "Not made yet: tokenize, pretrain, export, finetune.summarize, finetune.package, evaluate." in page.text
    assert "3,013" in page.text


@pytest.mark.parametrize("kept", ["text", "tokenizer", "checkpoints", "finetune", "evaluation", "model"])
def test_any_single_stage_makes_a_report(finished: Recipe, kept: str) -> None:
    for folder in ("text", "tokenizer", "tokens", "checkpoints", "model", "finetune", "evaluation"):
        if folder != kept:
            shutil.rmtree(finished.workdir / folder)
    assert "Not made yet" in Page(write_report(finished).read_text(encoding="utf-8")).text


def test_a_stage_older_than_its_input_is_named(finished: Recipe) -> None:
    manifest = finished.workdir / "text" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"setting"', '"other"'), encoding="utf-8")
    page = Page(write_report(finished).read_text(encoding="utf-8"))
    assert "shard was made again after tokenize read it" in page.text


def test_a_damaged_evaluation_is_told_and_left_out(finished: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    (finished.workdir / "evaluation" / "language_model.json").write_text('{"loss": 3', encoding="utf-8")
    with caplog.at_level("WARNING", "pipeline"):
        path = write_report(finished)
    assert "language_model.json" in caplog.text
    assert "1.398" not in Page(path.read_text(encoding="utf-8")).text


def test_nothing_made_is_an_error_with_a_remedy(recipe: Recipe) -> None:
    with pytest.raises(DataError, match="pipeline run"):
        write_report(recipe)
    assert not Path(recipe.workdir).exists()


def test_numbers_as_people_read_them() -> None:
    assert number(1_234_567) == "1,234,567"
    assert number(0.123456) == "0.1235"
    assert number(None) == "–"
    assert short(5_243_136) == "5.24 M"
    assert short(12) == "12"
    assert duration(3725) == "1 h 02 min"
    assert duration(200.4) == "3 min 20 s"
    assert cut("abcdef", 3) == "abc …"


def test_the_tokenizer_beside_others(finished: Recipe) -> None:
    """What is not measured is told; a token that is HTML is text."""
    told = {
        "held_out_bytes_per_token": [
            {"tokenizer": "this one", "vocab_size": 700, "bytes_per_token": {"all": 3.21, "language zh": 1.98}},
            {"tokenizer": "given/gpt2", "vocab_size": 50257, "bytes_per_token": {"all": 3.1, "language zh": 1.1}},
        ],
        "use": {"bytes": 1000, "unused": 17, "rarest": [{"id": 9, "text": "<script>", "uses": 3}]},
    }
    (finished.workdir / "tokenizer" / "report.json").write_text(json.dumps(told))
    tokenizer = finished.tokenizer.model_copy(update={"compare": ("given/gpt2", "given/late")})
    page = Page(write_report(finished.model_copy(update={"tokenizer": tokenizer})).read_text(encoding="utf-8"))
    for shown in ("given/gpt2", "50,257", "3.21", "17 words are not used", "given/late was named after"):
        assert shown in page.text, shown
    assert "given/gpt2 was named after" not in page.text and "script" not in page.tags

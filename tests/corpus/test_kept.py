"""`corpus.signals: keep`: decisions are repeated from kept documents, with the bytes of a run from the raw corpora."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import Shard, prose, tree, write_jsonl

from pipeline.corpus.document import Document
from pipeline.corpus.kept import FOLDER
from pipeline.corpus.normalize import normalize
from pipeline.corpus.rules import Judge, Known
from pipeline.errors import DataError
from pipeline.recipe import Rules

CHINESE = "我们今天在北京的大学里学习中文，老师给我们讲了很多有意思的故事。他说，这本书是去年写的！\n"
ARTICLE = (
    "The river rises in the hills above the town and runs for forty miles before it meets the sea. In spring the\n"
    "water is high, and boats go as far as the old mill; by August there is hardly any. Most people that live there\n"
    "have their gardens on the south side, with apple trees and a low wall of grey stone to keep the sheep out.\n"
    "Every Saturday a market is held in the square. It has been so since before anyone can remember!\n"
    "Does the bridge still stand? It was built to last, they say, though nobody now knows who paid for it.\n"
)
SETS = {"sets": ["gopher_repetition", "gopher_quality", "c4", "fineweb"], "c4": {"end_punctuation": False}}
FIRST: dict[str, Any] = {"rules": {"min_words": 20}}
CHANGED: list[dict[str, Any]] = [
    {"rules": SETS},
    {"rules": SETS | {"gopher_quality": {"min_words": 10}, "min_characters": 10}, "languages": ["en"]},
    {"rules": {"min_words": 60}, "languages": {"zh": 0.3, "en": 0.3}},
    {"rules": {"sets": ["refinedweb", "fineweb"]}},
]


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    texts = (
        [prose(n, 1 + n % 4) for n in range(20)]
        + [f"Part {n}. {ARTICLE}" for n in range(20)]
        + [f"{n}. {CHINESE * (n + 1)}" for n in range(8)]
    )
    texts += [prose(3), "", "short", "Menu\n" * 40, "\ud800 lone " + prose(99), "ab\x00c\r\n" + prose(98)]
    path = write_jsonl(tmp_path / "corpus" / "all.jsonl", texts)
    with path.open("a") as out:
        out.write("[]\n")
    return {"name": "all", "type": "jsonl", "path": str(path)}


def spoil(path: Path) -> None:
    """Other text in the same file, of the same size and time: whoever reads it makes something else."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"river", b"RIVER"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def kept(run: Path) -> list[Path]:
    return sorted((run / FOLDER).iterdir())


@pytest.mark.parametrize("changed", CHANGED, ids=str)
@pytest.mark.parametrize("more", [{}, {"privacy": "standard"}, {"split_bytes": 5000}], ids=str)
def test_the_same_bytes_as_from_raw(
    tmp_path: Path, shard: Shard, source: dict[str, Any], changed: dict[str, Any], more: dict[str, Any]
) -> None:
    common = {"signals": "keep", "bad_lines": "drop"} | more
    expected = shard([source], tmp_path / "raw", **common | changed)
    shard([source], tmp_path / "run", **common | FIRST)
    files = {path.name: path.read_bytes() for path in kept(tmp_path / "run")}
    spoil(Path(source["path"]))
    again = shard([source], tmp_path / "run", **common | changed)
    assert tree(tmp_path / "run" / "text") == tree(tmp_path / "raw" / "text")
    assert again.counts == expected.counts
    assert again.counts["kept"]["documents"] and again.counts["dropped"]
    assert {path.name: path.read_bytes() for path in kept(tmp_path / "run")} == files  # neither more nor others
    assert tree(tmp_path / "raw" / FOLDER) == files  # whatever the thresholds were


def test_keeping_changes_nothing_else(tmp_path: Path, shard: Shard, source: dict[str, Any]) -> None:
    shard([source], tmp_path / "one", bad_lines="drop", rules=SETS)
    shard([source], tmp_path / "two", bad_lines="drop", rules=SETS, signals="keep")
    assert tree(tmp_path / "one" / "text") == tree(tmp_path / "two" / "text")
    assert not (tmp_path / "one" / FOLDER).exists()


def test_a_bounded_source(tmp_path: Path, shard: Shard, source: dict[str, Any]) -> None:
    bounded = source | {"max_bytes": 4000}
    common = {"signals": "keep", "bad_lines": "drop", "split_bytes": 3000}
    shard([bounded], tmp_path / "run", **common | FIRST)
    shard([bounded], tmp_path / "raw", **common | CHANGED[2])
    spoil(Path(source["path"]))
    again = shard([bounded], tmp_path / "run", **common | CHANGED[2])
    assert again.counts["read"]["bytes"] <= 4000
    assert tree(tmp_path / "run" / "text") == tree(tmp_path / "raw" / "text")


def test_what_changed_is_read_again(tmp_path: Path, shard: Shard, source: dict[str, Any]) -> None:
    other = source | {"name": "other", "path": str(write_jsonl(tmp_path / "other.jsonl", [prose(200)]))}
    common = {"signals": "keep", "bad_lines": "drop"}
    shard([source, other], tmp_path / "run", **common)
    names = {path.name for path in kept(tmp_path / "run")}
    write_jsonl(tmp_path / "other.jsonl", [prose(201), prose(202)])
    made = shard([source, other], tmp_path / "run", **common)
    assert made.counts["sources"]["other"]["read"]["documents"] == 2
    assert len({path.name for path in kept(tmp_path / "run")} - names) == 1  # the other split's file served
    shard([source], tmp_path / "run", **common | {"normalize": "NFKC"})
    assert len(kept(tmp_path / "run")) == 4


def test_personal_data_is_not_kept(tmp_path: Path, shard: Shard) -> None:
    secret = "jane.roe@corp-mail.net"
    path = write_jsonl(tmp_path / "corpus.jsonl", [prose(n) + f"Write to {secret}.\n" for n in range(3)] + [secret])
    made = shard([{"name": "a", "type": "jsonl", "path": str(path)}], signals="keep", privacy="standard")
    assert made.counts["private"]["email"]["documents"] == 3
    for file in kept(tmp_path / "run"):
        with open(file, "rb") as raw:
            text = zstandard.ZstdDecompressor().stream_reader(raw).read()
        assert secret.encode() not in text and b"<EMAIL>" in text


@pytest.mark.parametrize("damage", ["cut", "other", "line"])
def test_a_damaged_file_is_named(tmp_path: Path, shard: Shard, source: dict[str, Any], damage: str) -> None:
    shard([source], signals="keep", bad_lines="drop", **FIRST)
    (path,) = kept(tmp_path / "run")
    whole = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    spoilt = {"cut": path.read_bytes()[:-20], "other": zstandard.compress(b"{}\n")}
    path.write_bytes(spoilt.get(damage) or zstandard.compress(whole + b'[1, {"id": 1}, null]\n'))
    with pytest.raises(DataError, match=rf"{path.name}: damaged .*delete it"):
        shard([source], signals="keep", bad_lines="drop", **CHANGED[0])


def test_what_a_killed_process_left_is_deleted(tmp_path: Path, shard: Shard, source: dict[str, Any]) -> None:
    left = tmp_path / "run" / FOLDER / "all-00000-key.jsonl.zst.host-1.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    shard([source], signals="keep", bad_lines="drop")
    assert not left.exists()


PIECES = st.sampled_from(
    ["the", "of", "fox", "中文", "学习。", "#", "...", "- a", "Stop.", "{", "\n", "\n\n", "3 likes"]
)


@settings(deadline=None, max_examples=100)
@given(st.lists(PIECES | st.text(max_size=5), max_size=40).map(" ".join).map(normalize), st.sampled_from(["en", None]))
def test_a_judge_decides_the_same_with_kept_signals(text: str, language: str | None) -> None:
    rules = Rules.model_validate(
        dict.fromkeys(("min_characters", "min_words")) | {"sets": ["refinedweb", *SETS["sets"]]}
    )
    for languages in ({}, {"en": 0.1}):
        judge = Judge(rules, languages)
        known = judge.measure(Document(text, "a", "s", language))
        read_back = Known(*json.loads(json.dumps([known.values, known.counted_with, known.identified])))
        assert judge(Document(text, "a", "s", language), read_back) == judge(Document(text, "a", "s", language))

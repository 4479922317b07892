from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import Shard, prose, tree, write_jsonl

from pipeline import manifest
from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError

TEXTS = [prose(number) for number in range(60)]


def web(path: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "web", "type": "jsonl", "path": str(path), "id_field": "id"} | settings


def kept(text_folder: Path) -> dict[str, list[str]]:
    """Ids of the documents in the tars, by part."""
    parts = ("train", "validation")
    return {p: [one.id for tar in text_tars(text_folder, p) for one in read_text_tar(tar)] for p in parts}  # type: ignore[arg-type]


def dropped(text_folder: Path) -> list[dict[str, Any]]:
    files = sorted((text_folder / "dropped").glob("*.jsonl.gz"))
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_counts_reasons_and_metadata(tmp_path: Path, shard: Shard) -> None:
    texts = [prose(1), "too short", prose(2), prose(1).replace("\n", "\r\n"), "\ufffd" * 300, prose(3)]
    write_jsonl(tmp_path / "in.jsonl", texts)
    books = tmp_path / "books"
    books.mkdir()
    (books / "copy.txt").write_text(prose(3))
    (books / "new.txt").write_text(prose(4))
    made = shard(
        [
            web(tmp_path / "in.jsonl", language="en"),
            {"name": "books", "type": "text", "path": str(books)},
        ],
        validation=0,
    )
    size = len(prose(1))
    web_counts = {
        "read": {"documents": 6, "bytes": sum(len(text.encode()) for text in texts)},
        "kept": {"documents": 3, "bytes": 3 * size},
        "train": {"documents": 3, "bytes": 3 * size, "tars": 1},
        "validation": {"documents": 0, "bytes": 0, "tars": 0},
        "dropped": {
            "duplicate": {"documents": 1, "bytes": size + 1},
            "max_replacement_characters": {"documents": 1, "bytes": 900},
            "min_characters": {"documents": 1, "bytes": 9},
        },
    }
    assert made.counts["sources"]["web"] == web_counts
    assert made.counts["read"]["documents"] == 8
    assert made.counts["dropped"]["duplicate"]["documents"] == 2
    assert {key: made.counts["kept"][key] for key in ("documents", "bytes")} == {"documents": 4, "bytes": 4 * size}
    text = tmp_path / "run" / "text"
    documents = [one for tar in text_tars(text, "train") for one in read_text_tar(tar)]
    assert [one.text for one in documents] == [prose(4), prose(1), prose(2), prose(3)]
    assert (documents[1].id, documents[1].source, documents[1].language) == ("doc0", "web", "en")
    assert documents[0].metadata == {"path": "new.txt"}
    reasons = {(one["source"], one["id"]): (one["rule"], one["value"], one["threshold"]) for one in dropped(text)}
    assert reasons["web", "doc1"] == ("min_characters", 9, 200)
    assert reasons["web", "doc4"] == ("max_replacement_characters", 1.0, 0.01)
    assert reasons["web", "doc3"][0] == reasons["books", "copy.txt"][0] == "duplicate"
    assert len(reasons) == 4
    assert next(one for one in dropped(text) if one["id"] == "doc1")["text"] == "too short"
    manifest.verify(text, made, checksums=True)
    assert not (text / "parts").exists()


def test_duplicates_stay_when_asked(tmp_path: Path, shard: Shard) -> None:
    source = web(write_jsonl(tmp_path / "in.jsonl", [prose(1), prose(2), prose(1)]))
    made = shard([source], drop_duplicates=False, validation=0.5)
    assert made.counts["kept"]["documents"] == 3
    ids = kept(tmp_path / "run" / "text")
    assert sorted(ids.values()) == [["doc0", "doc2"], ["doc1"]]  # copies never lie on both sides


def test_validation_is_a_function_of_the_text(tmp_path: Path, shard: Shard) -> None:
    """Whatever comes beside a document, and in whatever order, it stays on its side."""
    first = web(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    second = web(write_jsonl(tmp_path / "b.jsonl", [*reversed(TEXTS), *(prose(n) for n in range(100, 140))]))
    made = shard([first], tmp_path / "a", validation=0.2)
    shard([second], tmp_path / "b", validation=0.2, split_bytes=5000)
    a, b = kept(tmp_path / "a" / "text"), kept(tmp_path / "b" / "text")
    held_out = {int(name[3:]) for name in a["validation"]}
    assert held_out == {59 - int(name[3:]) for name in b["validation"] if int(name[3:]) < 60}
    assert 4 <= len(held_out) <= 22
    assert not set(a["train"]) & set(a["validation"])
    assert made.counts["validation"]["documents"] == len(held_out)


def test_validation_bound_and_at_least_one_document(tmp_path: Path, shard: Shard) -> None:
    source = web(write_jsonl(tmp_path / "in.jsonl", TEXTS))
    size = len(prose(10))
    bounded = shard([source], tmp_path / "a", validation=0.5, validation_max_bytes=3 * size)
    assert bounded.counts["validation"]["documents"] == 3
    assert bounded.counts["validation"]["bytes"] <= 3 * size
    tiny = shard([source], tmp_path / "b", validation=1e-9)
    assert tiny.counts["validation"]["documents"] == 1
    nearly_all = shard([source], tmp_path / "c", validation=1 - 1e-9)
    assert nearly_all.counts["train"]["documents"] == 1
    everything = shard([source], tmp_path / "d", validation=1.0)
    assert everything.counts["train"] == {"documents": 0, "bytes": 0, "tars": 0}


@pytest.mark.parametrize("split_bytes", [1 << 20, 2000])
def test_max_bytes_ends_a_source_in_its_order(tmp_path: Path, shard: Shard, split_bytes: int) -> None:
    source = web(write_jsonl(tmp_path / "in.jsonl", TEXTS), max_bytes=sum(map(len, TEXTS[:17])) + 5)
    made = shard([source], validation=0, split_bytes=split_bytes)
    assert kept(tmp_path / "run" / "text")["train"] == [f"doc{n}" for n in range(17)]
    assert made.counts["read"] == {"documents": 17, "bytes": sum(map(len, TEXTS[:17]))}


def test_the_output_does_not_depend_on_the_number_of_workers(tmp_path: Path, shard: Shard) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [*TEXTS, *TEXTS[:9], "short"])
    write_jsonl(tmp_path / "in" / "b.jsonl", [prose(n) for n in range(50, 90)])
    sources = [
        web(tmp_path / "in", max_bytes=40_000),
        {"name": "python", "type": "python_docs", "packages": ["numpy"], "max_bytes": 300_000},
    ]
    settings = {"split_bytes": 7000, "shard_bytes": 5000, "validation": 0.1}
    made = [shard(sources, tmp_path / str(n), workers=n, **settings) for n in (1, 2, 5)]
    trees = [tree(tmp_path / str(n) / "text") for n in (1, 2, 5)]
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) > 20
    assert made[0].fingerprint == made[1].fingerprint == made[2].fingerprint


def test_bad_lines(tmp_path: Path, shard: Shard) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", TEXTS[:3])
    path.write_text(path.read_text() + "{oops\n")
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"in\.jsonl:4: not valid JSON: .*corpus\.bad_lines=drop"):
            shard([web(path)], tmp_path / str(workers), workers=workers, split_bytes=500)
    made = shard([web(path)], bad_lines="drop")
    assert made.counts["dropped"] == {"bad_record": {"documents": 1, "bytes": 6}}


def test_an_empty_corpus(tmp_path: Path, shard: Shard) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"no document was read from web: the corpus is empty"):
        shard([web(tmp_path / "empty.jsonl")])
    with pytest.raises(DataError, match=r"corpus\.sources is empty"):
        shard([])
    with pytest.raises(DataError, match=r"source web: .*gone: no such file or folder"):
        shard([web(tmp_path / "gone")])


def test_an_empty_source_beside_others_is_told(
    tmp_path: Path, shard: Shard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    (tmp_path / "empty.jsonl").touch()
    source = web(write_jsonl(tmp_path / "in.jsonl", TEXTS))
    shard([source, web(tmp_path / "empty.jsonl", name="bare"), source | {"name": "tight", "max_bytes": 5}])
    assert "source bare: no document in it" in caplog.text
    assert "source tight: no document in it; its first is larger than max_bytes=5" in caplog.text


def test_a_source_of_which_nothing_is_kept_is_told(
    tmp_path: Path, shard: Shard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    short = web(write_jsonl(tmp_path / "short.jsonl", ["one", "two"]), name="short")
    shard([web(write_jsonl(tmp_path / "in.jsonl", TEXTS)), short])
    assert "source short: of 2 documents none is kept; dropped by min_characters 2" in caplog.text


def test_nothing_left_says_which_rules_took_how_many(tmp_path: Path, shard: Shard) -> None:
    source = web(write_jsonl(tmp_path / "in.jsonl", ["short", "", "short too", *TEXTS[:1]]))
    words = (
        r"no document of 4 is left after cleaning; dropped by min_characters 3, empty 1; "
        r"loosen corpus\.rules\.min_characters \(now 5000\)"
    )
    with pytest.raises(DataError, match=words):
        shard([source], rules={"min_characters": 5000})


def test_one_document_is_for_training(tmp_path: Path, shard: Shard) -> None:
    made = shard([web(write_jsonl(tmp_path / "in.jsonl", TEXTS[:1]))], validation=0.9)
    assert (made.counts["train"]["documents"], made.counts["validation"]["documents"]) == (1, 0)


def test_hostile_text_and_ids(tmp_path: Path, shard: Shard) -> None:
    path = tmp_path / "in.jsonl"
    records = [
        {"id": "../../etc/passwd\n\u0000", "text": prose(1) + "\u0000\ud800<script>"},
        {"id": "x" * 100_000, "text": prose(2)},
        {"id": "\ud800", "text": "\ud800"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    shard([web(path)], validation=0)
    text = tmp_path / "run" / "text"
    (tar,) = text_tars(text, "train")
    documents = list(read_text_tar(tar))
    assert documents[0].text == prose(1) + "\ufffd<script>"
    assert documents[0].id == "../../etc/passwd\n\x00"
    assert len(documents[1].id) == 512
    assert dropped(text)[0]["id"] == dropped(text)[0]["text"] == "\ufffd"

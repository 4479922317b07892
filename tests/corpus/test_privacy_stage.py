"""The shard stage with `privacy`: what was found is counted, and stands in no file that the run leaves."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_corpora import Shard, prose, tree, write_jsonl

from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.recipe import Corpus

MAIL, PHONE, CARD = "jane.roe@mail.example.org", "+44 20 7946 0958", "4111 1111 1111 1111"
TOKEN = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
VALUES = (MAIL, PHONE, CARD, TOKEN)


def contents(folder: Path) -> bytes:
    """Every byte in a folder, compressed files unpacked too."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"".join(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files)


def corpus(path: Path) -> dict[str, Any]:
    texts = [
        prose(1) + f"Write to {MAIL}, call {PHONE}.\n",
        prose(2) + f"Pay with {CARD}.\n",
        prose(3) + f"token: {TOKEN}\n",
        f"short {MAIL}",  # min_characters
        prose(1) + f"Write to {MAIL}, call {PHONE}.\n",  # a copy
        prose(4).replace("\n", f" {'y' * 30} {CARD}"),
        prose(5),
    ]
    write_jsonl(path, texts)
    path.write_text(path.read_text() + json.dumps({"id": f"<1.{MAIL}>", "text": prose(6)}) + "\n")
    path.write_text(path.read_text() + f'{{"text": "cut {CARD} {MAIL}\n')
    path.write_text(path.read_text() + json.dumps({"id": "fields by address", MAIL: "words", PHONE: "more"}) + "\n")
    return {"name": "web", "type": "jsonl", "path": str(path), "id_field": "id"}


def test_nothing_that_was_found_is_in_any_file(
    tmp_path: Path, shard: Shard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    caplog.set_level(logging.DEBUG)
    source = corpus(tmp_path / "in.jsonl")
    settings = {"bad_lines": "drop", "validation": 0, "signals": "write"}
    made = shard([source], privacy={"secrets": "drop"}, **settings)
    left = contents(tmp_path / "run") + caplog.text.encode()
    for value in VALUES:
        assert value.encode() not in left
        assert value[:12].encode() not in left
    text = tmp_path / "run" / "text"
    documents = [one for tar in text_tars(text, "train") for one in read_text_tar(tar)]
    assert len(documents) == 5
    assert documents[0].text.endswith("Write to <EMAIL>, call <PHONE>.\n")
    assert documents[-1].id == "<<EMAIL>>"
    assert made.counts["private"] == {
        "credit_card": {"documents": 2, "found": 2},
        "email": {"documents": 2, "found": 2},
        "github_token": {"documents": 1, "found": 1},
        "phone": {"documents": 2, "found": 2},
    }
    assert made.counts["sources"]["web"]["private"] == made.counts["private"]
    assert made.counts["dropped"]["privacy.github_token"]["documents"] == 1
    lines = gzip.decompress((text / "dropped" / "web-00000.jsonl.gz").read_bytes()).splitlines()
    dropped = {one["rule"]: one for one in map(json.loads, lines)}
    assert (dropped["privacy.github_token"]["value"], dropped["privacy.github_token"]["threshold"]) == (1, 0)
    assert dropped["min_characters"]["text"] == "short <EMAIL>"
    assert dropped["bad_record"]["text"] == ""
    assert set(dropped) == {"privacy.github_token", "min_characters", "duplicate", "bad_record"}


def test_half_done_work_holds_nothing_either(tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are written scrubbed: a run that is killed leaves no value among its parts."""
    import zstandard

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.corpus.shard.write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        shard([corpus(tmp_path / "in.jsonl")], privacy="standard", bad_lines="drop", validation=0)
    records = list((tmp_path / "run" / "text" / "parts").glob("*.records.zst"))
    assert records
    for path in records:
        with open(path, "rb") as handle:
            written = zstandard.ZstdDecompressor().stream_reader(handle).read()
        assert b"<EMAIL>" in written
        assert not any(value.encode() in written for value in VALUES)


def test_documents_that_differ_in_what_is_replaced_alone_are_copies(tmp_path: Path, shard: Shard) -> None:
    texts = [prose(1) + f"Write to {name}@example.org.\n" for name in ("ann", "bob")]
    source = {"name": "web", "type": "jsonl", "path": str(write_jsonl(tmp_path / "in.jsonl", texts))}
    assert shard([source], tmp_path / "a", privacy="standard").counts["dropped"]["duplicate"]["documents"] == 1
    assert not shard([source], tmp_path / "b").counts["dropped"]


def test_the_output_does_not_depend_on_workers(tmp_path: Path, shard: Shard) -> None:
    source = corpus(tmp_path / "in.jsonl")
    for workers in (1, 2):
        shard([source], tmp_path / str(workers), workers=workers, split_bytes=900, privacy="standard", bad_lines="drop")
    assert tree(tmp_path / "1" / "text") == tree(tmp_path / "2" / "text")


def test_standard_and_misspelt_settings() -> None:
    standard = Corpus(privacy="standard").privacy  # type: ignore[arg-type]
    assert standard is not None and standard.action("email") == "replace"
    assert Corpus().privacy is None
    for wrong in ({"emial": "drop"}, {"email": "mask"}, "strict"):
        with pytest.raises(ValueError, match="privacy"):
            Corpus(privacy=wrong)  # type: ignore[arg-type]

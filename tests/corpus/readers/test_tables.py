from __future__ import annotations

import csv
from pathlib import Path

import pytest
from source_reading import document, drops, gzipped, read, texts

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.readers import records
from pipeline.errors import DataError
from pipeline.recipe import Corpus

DROP = Corpus(bad_lines="drop")


def test_rows_as_the_standard_library_writes_them(tmp_path: Path) -> None:
    rows = [["7", "one, two", "http://x/1"], ["8", 'a "quoted"\nline\r\nand another', ""], ["9", "", "http://x/3"]]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([["n", "text", "where"], *rows])
    found = read("csv", tmp_path, id_field="n", url_field="where")
    assert texts(found) == [row[1] for row in rows]
    assert [one.id for one in found] == ["7", "8", "9"]
    assert isinstance(found[0], Document) and found[0].metadata == {"path": "a.csv", "url": "http://x/1"}
    content = (tmp_path / "a.csv").read_bytes()
    places = [int(one.id.split("@")[1]) for one in read("csv", tmp_path)]
    assert all(content[place:].startswith(row[0].encode()) for place, row in zip(places, rows, strict=True))


def test_tabs_several_columns_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzipped("title\tbody\nÉté\tUne forêt\n\tRien\n".encode("cp1252")))
    found = read("csv", tmp_path, text_fields=["title", "body"])
    assert texts(found) == ["Été\n\nUne forêt", "Rien"]
    (tmp_path / "b.txt").write_text("text;n\na,b;1\n")
    assert texts(read("csv", tmp_path / "b.txt", delimiter=";")) == ["a,b"]
    (tmp_path / "c.csv").write_bytes("text,n\nвот,1\n".encode("utf-16"))
    assert texts(read("csv", tmp_path / "c.csv", split_bytes=5)) == ["вот"]


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"a\.csv: no column 'text'; there are: a, b; set text_fields"):
        read("csv", tmp_path)
    assert drops(read("csv", tmp_path, Corpus(bad_files="skip"))) == [("bad_file", "a.csv")]


def test_broken_rows_are_named_or_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\n1,"good\nrow"\n\n2\n3,also good\n')
    with pytest.raises(
        DataError, match=r"a\.csv:5: 1 values under 2 columns; mend the row, or set corpus\.bad_lines=drop"
    ):
        read("csv", tmp_path)
    found = read("csv", tmp_path, DROP)
    assert texts(found) == ["good\nrow", "also good"]
    assert [(one.rule, one.id) for one in found if isinstance(one, Dropped)] == [("bad_record", "a.csv@21")]


def test_a_quotation_mark_that_nothing_closes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    (tmp_path / "a.csv").write_text('text\ngood\n"open\n' + "a line of it\n" * 20 + '"\ngood again\n')
    found = read("csv", tmp_path, DROP)
    assert texts(found)[0] == "good"
    assert texts(found)[-1] == "good again" or any("good again" in text for text in texts(found))
    assert any(one.rule == "max_record_bytes" for one in found if isinstance(one, Dropped))


def test_odd_tables(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "names_only.csv").write_bytes(b"text\n")
    assert read("csv", tmp_path) == []
    (tmp_path / "nul.csv").write_bytes(b"text\na\0b\n")
    found = read("csv", tmp_path / "nul.csv", DROP)
    assert len(found) == 1  # Python 3.10 refuses it, later ones read it
    (tmp_path / "wide.csv").write_text("text\n" + "w" * 200_000 + "\n")
    assert len(document(read("csv", tmp_path / "wide.csv")).text) == 200_000  # csv's own bound is 131,072

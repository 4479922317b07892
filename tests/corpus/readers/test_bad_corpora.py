"""What nobody should feed to a reader, and somebody will. Each document is read, or dropped with a reason."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_reading import drops, gzipped, read, record, texts

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.readers import records
from pipeline.errors import DataError
from pipeline.recipe import Corpus

SKIP = Corpus(bad_files="skip", bad_lines="drop")


def bomb(path: Path) -> None:
    """1 GiB of zeros in 1 MB of gzip; made of one member of 32 MiB, repeated."""
    path.write_bytes(gzipped(bytes(1 << 25)) * 32)
    assert path.stat().st_size < 1 << 21


def test_a_bomb_of_a_gibibyte(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    bomb(path)
    tracemalloc.start()
    try:
        for kind in ("text", "code", "markdown", "html", "mail"):
            target = tmp_path / kind / {"code": "a.c.gz", "markdown": "a.md.gz", "html": "a.html.gz"}.get(kind, "a.gz")
            target.parent.mkdir()
            os.link(path, target)
            if kind != "mail":
                ((rule, _),) = drops(read(kind, target))
                assert rule in ("max_record_bytes", "binary", "max_page_bytes")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * records.MAX_RECORD_BYTES


def test_a_bomb_of_a_gibibyte_as_a_line(tmp_path: Path) -> None:
    bomb(tmp_path / "a.jsonl.gz")
    ((rule, place),) = drops(read("jsonl", tmp_path))
    assert (rule, place) == ("max_record_bytes", "a.jsonl.gz@0")


@pytest.mark.parametrize("packed", ["bz2", "xz"])
def test_other_bombs(tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1 << 20)
    path = tmp_path / f"a.txt.{packed}"
    content = bytes(1 << 26)
    path.write_bytes(bz2.compress(content, 1) if packed == "bz2" else lzma.compress(content, preset=0))
    tracemalloc.start()
    try:
        assert [rule for rule, _ in drops(read("text", path))] == ["max_record_bytes"]
        assert [rule for rule, _ in drops(read("text", path, split="line"))] == ["max_record_bytes"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 25


def test_an_xz_file_that_asks_for_much_memory(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(b"words" * 100, filters=filters))
    (tmp_path / "a.txt.xz").write_bytes(bytes(content))
    assert texts(read("text", tmp_path)) == ["words" * 100]
    alone = bytearray(lzma.compress(b"words" * 100, format=lzma.FORMAT_ALONE))
    alone[1:5] = (3 << 30).to_bytes(4, "little")  # the dictionary: 3 GiB
    (tmp_path / "a.txt.xz").write_bytes(bytes(alone))
    with pytest.raises(DataError, match=r"a\.txt\.xz: damaged, .*[Mm]emory"):
        read("text", tmp_path)


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_other_compressed_files_that_are_cut_or_joined(tmp_path: Path, suffix: str) -> None:
    pack = bz2.compress if suffix == ".bz2" else lzma.compress
    line = b'{"text": "some words that are here"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(line) + pack(line * 2))
    assert len(texts(read("jsonl", path))) == 3
    whole = pack(os.urandom(30_000).hex().encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="ends early"):
        read("jsonl", path)
    path.write_bytes(b"no such thing" * 10)
    with pytest.raises(DataError, match="damaged"):
        read("jsonl", path)


def test_a_gzip_file_that_ends_early_is_counted_where_the_recipe_says_so(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%s"}\n' % os.urandom(500).hex().encode() for _ in range(500))
    (tmp_path / "a.jsonl.gz").write_bytes(gzipped(lines)[:-100])
    (tmp_path / "b.jsonl").write_bytes(lines)
    found = read("jsonl", tmp_path, SKIP)
    assert drops(found) == [("bad_file", "a.jsonl.gz")]
    assert 900 < len(texts(found)) < 1000  # what lies before the place is kept
    assert read("jsonl", tmp_path, SKIP) == found


def test_bad_lines_are_not_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n["text"]\n')
    with pytest.raises(DataError, match="is a JSON list"):
        read("jsonl", tmp_path, Corpus(bad_files="skip"))
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is a null"):
        read("parquet", tmp_path, Corpus(bad_files="skip"))


def test_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "c.parquet")
    found = read("parquet", tmp_path, SKIP)
    assert texts(found) == ["x"]
    assert drops(found) == [("bad_file", "a.parquet"), ("bad_file", "b.parquet")]
    assert "no column 'text'; there are: body" in str(found[0].value)  # type: ignore[union-attr]


def test_a_document_of_200_mb_and_a_line_of_50(tmp_path: Path) -> None:
    with open(tmp_path / "huge.txt", "wb") as handle:
        handle.truncate(200 << 20)
    assert drops(read("text", tmp_path)) == [("max_record_bytes", "huge.txt")]
    assert drops(read("text", tmp_path, split="paragraph")) == [("max_record_bytes", "huge.txt@0")]
    (tmp_path / "long.jsonl").write_bytes(b'{"text": "' + b"x" * (50 << 20) + b'"}\n{"text": "y"}\n')
    assert [len(text) for text in texts(read("jsonl", tmp_path / "long.jsonl"))] == [50 << 20, 1]


ODD = {
    "empty": "",
    "nul": "a\0b\0",
    "rtl": "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u202c",
    "combining": "Z" + "\u0301\u0323" * 500,
    "bom": "\ufeffx\ufeff",
    "lines": "a\x0bb\x0cc\x1cd\x85e\u2028f",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_come_through(tmp_path: Path, name: str) -> None:
    text = ODD[name]
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "a.warc").write_bytes(record(text.encode(), "http://x/", b"conversion", headers=b"text/plain"))
    pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        assert texts(read(kind, tmp_path)) == [text]
    assert texts(read("text", tmp_path / "a.txt")) == [text.removeprefix("\ufeff")]
    assert texts(read("warc", tmp_path)) == [text.removeprefix("\ufeff")]


@pytest.mark.parametrize(
    "name", ["a b.txt", "a\nb.txt", "..txt", "a..b.txt", "-rf.txt", "a'b\"$(x).txt", "ü/日本.txt", "x?y#z.txt"]
)
def test_odd_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("words")
    if not path.name.startswith("."):  # which hides it
        (found,) = read("text", tmp_path / "in")
        assert (found.id, found.text) == (name, "words")
    (found,) = read("text", tmp_path / "in" / ".." / "in" / name)
    assert found.text == "words"
    (tmp_path / "in" / (name + ".gz")).write_bytes(b"no gzip")
    with pytest.raises(DataError) as error:
        read("text", tmp_path / "in" / (name + ".gz"))
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as handle:
        handle.write(b"words")
    (found,) = read("text", tmp_path)
    assert found.text == "words"


# --- random bytes --------------------------------------------------------------------------------------------------

WARC = record(b"<p>words", "http://x/1") + record(b"<p>more", "http://x/2")
MBOX = b"From a@x Mon May  1 10:00:00 2024\nContent-Type: text/html; charset=x\n\n<p>words\n\n" * 2
SEEDS = {
    "warc": WARC,
    "mail": MBOX,
    "html": b'<html><head><meta charset="x"><body><p>a<table><tr><td>b<!-- c --><script>d',
    "csv": b'a,text\n"b ""c",d\ne,"f\ng"\n',
    "markdown": b"---\na: b\n---\nwords\n",
    "code": b"int main() {\n}\n",
}
NAMES = {"warc": "a.warc", "mail": "a.mbox", "html": "a.html", "csv": "a.csv", "markdown": "a.md", "code": "a.c"}


def spoilt(seed: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a right file with a piece of it replaced, or any bytes."""

    @st.composite
    def edit(draw: st.DrawFn) -> bytes:
        start = draw(st.integers(0, len(seed)))
        end = draw(st.integers(start, min(len(seed), start + 40)))
        return seed[:start] + draw(st.binary(max_size=20)) + seed[end:]

    return st.one_of(edit(), st.binary(max_size=200))


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("packed", [False, True])
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(data=st.data())
def test_random_bytes_give_documents_or_one_clear_line(
    tmp_path: Path, kind: str, packed: bool, data: st.DataObject
) -> None:
    content = data.draw(spoilt(SEEDS[kind]))
    path = tmp_path / (NAMES[kind] + (".gz" if packed else ""))
    path.write_bytes(gzipped(content) if packed else content)
    for corpus in (Corpus(), SKIP):
        try:
            found = read(kind, path, corpus, split_bytes=64)
        except DataError as error:
            assert corpus is not SKIP
            assert "\n" not in str(error)
        else:
            ids = [one.id for one in found]
            assert all(isinstance(one, (Document, Dropped)) for one in found)
            assert len(set(ids)) == len(ids) or "bad_file" in [rule for rule, _ in drops(found)]

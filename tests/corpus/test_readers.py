from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import Item
from pipeline.corpus.readers import records
from pipeline.corpus.readers.split import read_split
from pipeline.corpus.sources import plan_splits
from pipeline.errors import DataError
from pipeline.recipe import Corpus, HuggingFaceSource, JsonlSource, ParquetSource, Source, TextSource

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(source: Source, bad_lines: Any = "fail", split_bytes: int = 1 << 20) -> list[Document | Dropped]:
    splits = plan_splits(source, split_bytes)
    return [document for split in splits for document, _ in read_split(source, split, Corpus(bad_lines=bad_lines))]


def texts(found: list[Document | Dropped]) -> list[str]:
    return [one.text for one in found if isinstance(one, Document)]


def jsonl(path: Path, **settings: Any) -> JsonlSource:
    return JsonlSource(name="web", type="jsonl", path=str(path), **settings)


def text(path: Path, **settings: Any) -> TextSource:
    return TextSource(name="books", type="text", path=str(path), **settings)


# --- jsonl ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    lines = b'\xef\xbb\xbf{"text": "one", "n": 7}\n\n  \r\n{"text": "\\u4e2d", "n": "b"}'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](lines))
    found = read(jsonl(path, id_field="n", language="en"))
    assert found == [
        Document("one", "7", "web", "en", {"path": path.name}),
        Document("中", "b", "web", "en", {"path": path.name}),
    ]
    assert [one.id for one in read(jsonl(path))] == [f"{path.name}@0", f"{path.name}@{lines.rindex(b'{')}"]


@pytest.mark.parametrize("split_bytes", [1, 7, 30, 1000])
def test_cutting_a_file_of_lines_loses_and_repeats_nothing(tmp_path: Path, split_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in range(40)))
    found = read(jsonl(path), split_bytes=split_bytes)
    assert texts(found) == ["x" * n for n in range(40)]
    content = path.read_bytes()
    assert all(content[int(one.id.split("@")[1]) :].startswith(b'{"text') for one in found)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "cut', "not valid JSON"),
        (b'["text"]', "is a JSON list, not an object"),
        (b"3", "is a JSON number"),
        (b'{"body": "x", "id": 1}', "no column 'text'; there are: body, id"),
        (b'{"text": null}', "'text' is a null, not text"),
        (b'{"text": ["x"]}', "'text' is a list, not text"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_lines_are_named_or_dropped(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good too"}\n')
    with pytest.raises(DataError, match=r"corpus\.bad_lines=drop") as error:
        read(jsonl(path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    found = read(jsonl(path), "drop")
    assert texts(found) == ["good", "good too"]
    (dropped,) = [one for one in found if isinstance(one, Dropped)]
    assert (dropped.rule, dropped.id, dropped.bytes) == ("bad_record", "a.jsonl@18", len(line) + 1)
    assert words in str(dropped.value)


def test_a_broken_line_far_into_a_cut_file_has_its_true_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 99 + "{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:100: "):
        read(jsonl(path), split_bytes=100)


def test_lone_surrogates_and_nan_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud800x", "score": NaN}\n')
    assert texts(read(jsonl(path))) == ["\ud800x"]


def test_a_line_too_large_for_memory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 50)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"text": "x" * 90}) + '\n{"text": "b"}\n')
    found = read(jsonl(path))
    assert texts(found) == ["a", "b"]
    assert isinstance(found[1], Dropped)
    assert (found[1].rule, found[1].value, found[1].threshold) == ("max_record_bytes", 103, 50)


# --- compressed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_ends_early(tmp_path: Path, suffix: str) -> None:
    whole = PACK[suffix](b'{"text": "some words that are here"}\n' * 1000)
    path = tmp_path / f"a.jsonl{suffix}"
    for length in (5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="ends early") as error:
            read(jsonl(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_frames_are_one_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one ") + PACK[suffix](b"two"))
    assert texts(read(text(path))) == ["one two"]
    path.write_bytes(path.read_bytes() + b"no frame")
    with pytest.raises(DataError, match="damaged"):
        read(text(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_not_held_in_memory(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros: dropped as a document, passed over as a line, and never there as a whole."""
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1 << 20)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](bytes(1 << 26)))
    tracemalloc.start()
    try:
        (dropped,) = read(text(path))
        (line,) = read(text(path, split="line"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 25
    assert isinstance(dropped, Dropped)
    assert isinstance(line, Dropped)
    assert (line.rule, line.value) == ("max_record_bytes", 1 << 26)


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_text(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "b").mkdir()
    content = "one\ntwo\n\n \nthrée\r\nfour".encode()
    for name in (f"b/z.txt{suffix}", f"a.md{suffix}"):
        (tmp_path / name).write_bytes(PACK[suffix](content))
    found = read(text(tmp_path))
    assert [one.id for one in found] == [f"a.md{suffix}", f"b/z.txt{suffix}"]
    assert texts(found) == [content.decode()] * 2
    one_file = tmp_path / f"a.md{suffix}"
    assert texts(read(text(one_file, split="line"))) == ["one", "two", " ", "thrée", "four"]
    paragraphs = read(text(one_file, split="paragraph"))
    assert texts(paragraphs) == ["one\ntwo", "thrée\r\nfour"]
    assert [one.id for one in paragraphs] == [f"a.md{suffix}@0", f"a.md{suffix}@{content.index(b'th')}"]


def test_bytes_that_no_encoding_explains_become_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("une forêt, été".encode() + b"\xff")
    (found,) = read(text(tmp_path / "a.txt"))
    assert found.text == "une forêt, été\ufffd"
    assert isinstance(found, Document)
    assert found.metadata == {"path": "a.txt", "replaced": "1"}


def test_a_paragraph_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 20)
    (tmp_path / "a.txt").write_text("one\n\n" + "a line of it\n" * 5 + "\n" + "x" * 90 + "\ny\n\ntwo\n")
    found = read(text(tmp_path / "a.txt", split="paragraph"))
    assert texts(found) == ["one", "two"]
    assert [one.value for one in found if isinstance(one, Dropped)] == [65, 93]


# --- parquet -------------------------------------------------------------------------------------------------------


def parquet(path: Path, **settings: Any) -> ParquetSource:
    return ParquetSource(name="tables", type="parquet", path=str(path), **settings)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one", "two", None], "n": [1, 2, 3], "text": [1, 2, 3]}), path)
    with pytest.raises(DataError, match=r"row 2: 'body' is a null, not text; .*bad_lines=drop"):
        read(parquet(path, text_field="body"))
    found = read(parquet(path, text_field="body", id_field="n"), "drop")
    assert texts(found) == ["one", "two"]
    assert [one.id for one in found] == ["1", "2", "a.parquet@2"]
    with pytest.raises(DataError, match=r"no column 'words'; there are: body, n, text; set text_field"):
        read(parquet(path, text_field="words"), "drop")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_parquet_text_too_large_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 20)
    path = tmp_path / "a.parquet"
    texts_there = ["one", "x" * 21, None, "é" * 10, "é" * 11, "two"]
    pq.write_table(pa.table({"text": pa.array(texts_there, kind)}), path, row_group_size=4)
    found = read(parquet(path), "drop")
    assert texts(found) == ["one", "é" * 10, "two"]
    dropped = [(one.id, one.rule, one.value) for one in found if isinstance(one, Dropped)]
    assert dropped[0] == ("a.parquet@1", "max_record_bytes", 21)
    assert dropped[1][:2] == ("a.parquet@2", "bad_record")
    assert dropped[2] == ("a.parquet@4", "max_record_bytes", 22)


def test_a_parquet_file_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole parquet file"):
        read(parquet(path))


# --- datasets ------------------------------------------------------------------------------------------------------


def test_huggingface_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "a.jsonl").write_text('{"words": "one", "n": 1}\n{"words": "two", "n": 2}\n')
    settings = {"name": "hub", "type": "huggingface", "path": "json", "data_files": str(tmp_path / "a.jsonl")}
    source = HuggingFaceSource.model_validate(settings | {"text_field": "words"})
    assert [(one.id, one.text) for one in read(source)] == [("json@0", "one"), ("json@1", "two")]
    with monkeypatch.context() as patch:
        patch.setattr(records, "MAX_RECORD_BYTES", 2)
        assert [one.value for one in read(source) if isinstance(one, Dropped)] == [3, 3]
    with pytest.raises(DataError, match="source hub: data set json: no column 'text'; there are: words, n"):
        read(HuggingFaceSource.model_validate(settings))
    with pytest.raises(DataError, match="source hub: data set json: cannot be"):
        read(HuggingFaceSource.model_validate(settings | {"data_files": str(tmp_path / "gone.jsonl")}))


# --- random bytes --------------------------------------------------------------------------------------------------

SOURCES: list[Callable[[Path], Source]] = [
    jsonl,
    text,
    lambda path: text(path, split="line"),
    lambda path: text(path, split="paragraph"),
    parquet,
]


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("suffix", PACK)
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.one_of(st.binary(), st.text(alphabet='{}[]":, \n\\uabcd0').map(str.encode)), st.booleans())
def test_random_bytes_give_documents_or_one_clear_line(
    tmp_path: Path, make: Callable[[Path], Source], suffix: str, content: bytes, packed: bool
) -> None:
    path = tmp_path / f"random{suffix}"
    path.write_bytes(PACK[suffix](content) if packed else content)
    for bad_lines in ("fail", "drop"):
        try:
            for one in read(make(path), bad_lines):
                assert isinstance(one, (Document, Dropped))
        except DataError as error:
            assert "\n" not in str(error)


def test_a_file_that_went_away(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"), open_stream(tmp_path / "gone.txt"):
        pass
    assert Item("a", "a", 10, 3, 7).bytes == 4

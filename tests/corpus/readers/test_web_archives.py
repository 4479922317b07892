from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from source_reading import drops, gzipped, read, record, texts

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.readers import html, records, warc
from pipeline.errors import DataError
from pipeline.recipe import Corpus


def para(words: str) -> bytes:
    return f"<html><body><p>{words}</p></body></html>".encode()


A, B, C = (record(para(f"Page {name} has some words."), f"http://x.org/{name}") for name in "abc")
INFO = record(b"software: x\r\n", "", b"warcinfo", headers=b"application/warc-fields")


@pytest.mark.parametrize("packed", ["plain", "member", "whole"])
def test_pages_and_where_they_came_from(tmp_path: Path, packed: str) -> None:
    """One gzip member a record, as is the rule, or one for all."""
    parts = [INFO, A, B, C]
    content = b"".join(map(gzipped, parts)) if packed == "member" else b"".join(parts)
    path = tmp_path / ("a.warc" if packed == "plain" else "a.warc.gz")
    path.write_bytes(gzipped(content) if packed == "whole" else content)
    found = read("warc", tmp_path)
    assert texts(found) == [f"Page {name} has some words." for name in "abc"]
    assert found[1] == Document(
        "Page b has some words.",
        f"{path.name}@{len(INFO) + len(A)}",
        "s",
        None,
        {"path": path.name, "url": "http://x.org/b", "date": "2024-05-01T00:00:00Z"},
    )


def test_other_records(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(
        record("Texte d'une page, été".encode(), "http://x.org/wet", b"conversion", headers=b"text/plain")
        + record(para("A resource."), "http://x.org/r", b"resource", headers=b"text/html")
        + record(b"GET / HTTP/1.1\r\n\r\n", "http://x.org/", b"request", headers=b"application/http; msgtype=request")
        + record(b"\x89PNG", "http://x.org/i.png", headers=b"Content-Type: image/png\r\n")
        + record(b"plain words", "http://x.org/p", headers=b"Content-Type: text/plain\r\n")
        + A.replace(b"200 OK", b"404 No")
    )
    found = read("warc", tmp_path)
    assert texts(found) == ["Texte d'une page, été", "A resource.", "plain words"]
    assert [(one.rule, one.value) for one in found if isinstance(one, Dropped)] == [
        ("media_type", "image/png"),
        ("http_status", 404),
    ]


def test_bodies_as_they_were_sent(tmp_path: Path) -> None:
    page = para("Words of a packed page.")
    html_type = b"Content-Type: text/html\r\n"
    chunks = b"%x\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (10, page[:10], len(page) - 10, page[10:])
    (tmp_path / "a.warc").write_bytes(
        record(gzip.compress(page), "http://x/1", headers=html_type + b"Content-Encoding: gzip\r\n")
        + record(chunks, "http://x/2", headers=html_type + b"Transfer-Encoding: chunked\r\n")
        # A crawler that stores what it has unpacked, under the headers that came:
        + record(page, "http://x/3", headers=html_type + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n")
        + record(gzip.compress(page)[:-20], "http://x/4", headers=html_type + b"Content-Encoding: gzip\r\n")
        + record("été à".encode("latin-1"), "http://x/5", headers=b"Content-Type: text/html; charset=ISO-8859-1\r\n")
    )
    found = read("warc", tmp_path)
    assert texts(found)[:3] == ["Words of a packed page."] * 3
    assert texts(found)[-1] == "été à"
    assert [rule for rule, _ in drops(found)] in ([], ["bad_record"])  # the torn body: dropped, or its beginning read


def test_a_bomb_inside_a_record(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(1 << 26))
    headers = b"Content-Type: text/html\r\nContent-Encoding: gzip\r\n"
    (tmp_path / "a.warc.gz").write_bytes(gzipped(A) + gzipped(record(bomb, "http://x/b", headers=headers)) + gzipped(C))
    found = read("warc", tmp_path)
    assert len(texts(found)) == 2
    assert [(one.rule, one.value) for one in found if isinstance(one, Dropped)] == [
        ("max_page_bytes", html.MAX_PAGE_BYTES + 1)
    ]


@pytest.mark.parametrize("pack", [bytes, gzipped])
@pytest.mark.parametrize("length", [100, 40, 0, 400, 10**12])
def test_a_wrong_length_costs_one_record(tmp_path: Path, pack: type[bytes], length: int) -> None:
    """Too short: bytes lie between two records. Too long: the next one lies within it."""
    wrong = record(b"<p>" + b"b" * 100, "http://x.org/b", length=length)
    path = tmp_path / ("a.warc" if pack is bytes else "a.warc.gz")
    path.write_bytes(pack(A) + pack(wrong) + pack(C))
    found = read("warc", path)
    assert texts(found) == ["Page a has some words.", "Page c has some words."]
    (dropped,) = [one for one in found if isinstance(one, Dropped)]
    assert (dropped.rule, dropped.id) == ("bad_record", f"{path.name}@{len(A)}")
    assert "wrong Content-Length" in str(dropped.value)


def test_a_record_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 500)
    monkeypatch.setattr(warc, "_BLOCK", 64)
    (tmp_path / "a.warc").write_bytes(A + record(bytes(1000), "http://x/b") + C)
    found = read("warc", tmp_path)
    assert len(texts(found)) == 2
    assert drops(found) == [("max_record_bytes", f"a.warc@{len(A)}")]


@pytest.mark.parametrize("pack", [bytes, gzipped])
def test_an_archive_that_ends_early(tmp_path: Path, pack: type[bytes]) -> None:
    path = tmp_path / ("a.warc" if pack is bytes else "a.warc.gz")
    whole = pack(A) + pack(B)
    for cut in (30, len(pack(B)) - 10):
        path.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match="ends early") as error:
            read("warc", path)
        assert str(path) in str(error.value)
        found = read("warc", path, Corpus(bad_files="skip"))
        assert texts(found) == ["Page a has some words."]
        assert drops(found) == [("bad_file", path.name)]


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"hello\r\n" * 100)
    with pytest.raises(DataError, match="no web archive"):
        read("warc", tmp_path)
    (tmp_path / "a.warc").write_bytes(b"WARC/1.0\r\nX: " + b"a" * (1 << 17))
    with pytest.raises(DataError, match="no web archive"):
        read("warc", tmp_path)
    (tmp_path / "a.warc").write_bytes(b"")
    assert read("warc", tmp_path) == []


def test_an_archive_full_of_faults_is_no_archive(tmp_path: Path) -> None:
    wrong = record(b"<p>" + b"b" * 100, "http://x.org/b", length=30)
    (tmp_path / "a.warc").write_bytes(wrong * 200)
    with pytest.raises(DataError, match="more than 100 records of a wrong length"):
        read("warc", tmp_path)

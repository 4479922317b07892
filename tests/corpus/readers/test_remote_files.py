"""Remote files, from a real HTTP server on this machine."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_reading import document, drops, gzipped, read, texts

from pipeline.corpus.locations import find_files, is_remote, shown, suffix
from pipeline.corpus.sources import source_fingerprint
from pipeline.errors import DataError, EnvironmentFault
from pipeline.recipe import Corpus, JsonlSource


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; it knows no ranges. A file named `cut…` is promised whole and sent half."""

    def log_message(self, *words: object) -> None:
        pass

    def copyfile(self, source: object, outputfile: object) -> None:
        content = source.read()  # type: ignore[attr-defined]
        if "/cut" in self.path:
            content = content[: len(content) // 2]
            self.close_connection = True
        outputfile.write(content)  # type: ignore[attr-defined]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_of_a_server(site: tuple[str, Path]) -> None:
    address, folder = site
    lines = b'{"text": "one"}\n' * 50
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzipped(lines))
    for name in ("a.jsonl", "b.jsonl.gz"):
        found = read("jsonl", f"{address}/{name}", split_bytes=100)
        assert texts(found) == ["one"] * 50
        assert [one.id for one in found] == [f"{name}@{16 * n}" for n in range(50)]
    assert len(texts(read("jsonl", f"{address}/"))) == 100  # by the links of its list of files
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: .*(range|seek)"):
        read("parquet", f"{address}/c.parquet")


def test_a_file_that_changed_on_the_server(site: tuple[str, Path]) -> None:
    address, folder = site
    source = JsonlSource(name="web", type="jsonl", path=f"{address}/a.jsonl")
    (folder / "a.jsonl").write_bytes(b"{}\n")
    first = source_fingerprint(source)
    assert source_fingerprint(source) == first
    (folder / "a.jsonl").write_bytes(b"{}\n{}\n")
    assert source_fingerprint(source) != first


def test_what_is_not_there_and_what_breaks_off(site: tuple[str, Path]) -> None:
    address, folder = site
    with pytest.raises(DataError, match=r"source s: http.*no such file"):
        read("jsonl", f"{address}/gone.jsonl")
    (folder / "cut.txt").write_bytes(b"some words\n" * 100_000)
    with pytest.raises(DataError, match=r"source s: http.*/cut\.txt: cannot be read: .*corpus\.bad_files=skip"):
        read("text", f"{address}/cut.txt")
    found = read("text", f"{address}/cut.txt", Corpus(bad_files="skip"), split="line")
    assert 0 < len(texts(found)) < 100_000
    assert drops(found) == [("bad_file", "cut.txt")]


def test_other_schemes(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("words")
    assert document(read("text", f"file://{tmp_path}/a b.txt")).text == "words"
    with pytest.raises(DataError, match=r"cannot be opened: .*nowhere"):
        read("text", "nowhere://bucket/a.txt")
    with pytest.raises((EnvironmentFault, DataError), match=r"s3://bucket|s3fs"):
        read("text", "s3://bucket.invalid/a.txt")


def test_remote_folders_and_patterns() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("a.txt", "deep/b.txt", "deep/.hidden.txt", "deep/c.jsonl", "with space\n.txt", "d.txt.tmp"):
        memory.pipe(f"/listed/{name}", b"words")
    assert [item.name for item in find_files("memory://listed", ("",))] == [
        "a.txt",
        "deep/b.txt",
        "deep/c.jsonl",
        "with space\n.txt",
    ]
    assert [item.name for item in find_files("memory://listed/*/*.txt", ("",))] == ["deep/b.txt"]
    assert [item.size for item in find_files("memory://listed/a.txt", ("",))] == [5]
    with pytest.raises(DataError, match=r"no file in it ends in \.pq"):
        find_files("memory://listed", (".pq",))
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(100))
    memory.pipe("/listed/deep/c.jsonl", lines)
    assert texts(read("jsonl", "memory://listed/deep", split_bytes=77)) == [str(n) for n in range(100)]
    pq.write_table(
        pa.table({"text": ["a", "b"]}), "/listed/t.parquet", filesystem=pa.fs.PyFileSystem(pa.fs.FSSpecHandler(memory))
    )
    assert texts(read("parquet", "memory://listed/t.parquet")) == ["a", "b"]


def test_words_of_locations() -> None:
    assert not is_remote("C:/x") and not is_remote("file:///x") and is_remote("s3://b/x")
    assert suffix("https://x.org/a.GZ?key=1.txt") == ".gz"
    assert shown("https://me:secret@x.org/a.gz?sig=secret") == "https://…@x.org/a.gz?…"
    assert "secret" not in shown("s3://me:secret@bucket/a")
    assert "\n" not in shown("a\nb")

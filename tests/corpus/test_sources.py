from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.corpus.locations import find_files, path_fingerprint
from pipeline.corpus.sources import plan_splits, source_fingerprint
from pipeline.errors import DataError
from pipeline.recipe import HuggingFaceSource, JsonlSource, Source, TextSource


def lay_out(folder: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub dir/c.json.zst", ".hidden/d.jsonl", ".e.jsonl", "f.txt", "g.jsonl.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)


def names(pattern: str | Path, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    return [item.name for item in find_files(str(pattern), suffixes)]


def test_a_file_a_folder_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    assert names(tmp_path / "f.txt") == ["f.txt"]
    assert names(tmp_path) == ["a.jsonl.gz", "b.jsonl", "f.txt", "sub dir/c.json.zst"]
    assert names(tmp_path / "*.jsonl*") == ["a.jsonl.gz", "b.jsonl"]
    assert names(tmp_path / "**" / "*.json*") == ["a.jsonl.gz", "b.jsonl", "sub dir/c.json.zst"]
    (tmp_path / "[1].txt").touch()
    assert names(tmp_path / "[1].txt") == ["[1].txt"]
    monkeypatch.chdir(tmp_path)
    assert names("*.txt") == ["[1].txt", "f.txt"]
    assert names("sub dir") == ["c.json.zst"]
    source = JsonlSource(name="web", type="jsonl", path=str(tmp_path))
    assert [item.name for split in plan_splits(source, 1000) for item in split.items] == [
        "a.jsonl.gz",
        "b.jsonl",
        "sub dir/c.json.zst",
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone.jsonl", "no such file or folder"),
        ("*.parquet", "no file matches"),
        ("empty", "no file in it ends in .jsonl"),
    ],
)
def test_nothing_there(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    source = JsonlSource(name="web", type="jsonl", path=str(tmp_path / path))
    for ask in (source_fingerprint, lambda source: plan_splits(source, 1000)):
        with pytest.raises(DataError, match=words) as error:
            ask(source)
        assert str(error.value).startswith(f"source web: {tmp_path / path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed: the folder cannot be read"):
        find_files(str(tmp_path), ("",))


def test_fingerprints_follow_the_files(tmp_path: Path) -> None:
    lay_out(tmp_path)
    first = path_fingerprint(str(tmp_path))
    assert path_fingerprint(str(tmp_path)) == first
    os.utime(tmp_path / "f.txt", ns=(1, 1))
    second = path_fingerprint(str(tmp_path))
    (tmp_path / "h.txt").touch()
    third = path_fingerprint(str(tmp_path))
    assert len({first, second, third}) == 3
    files = str(tmp_path / "b.jsonl")
    hub = HuggingFaceSource(name="hub", type="huggingface", path="user/set")
    local = HuggingFaceSource(name="hub", type="huggingface", path="json", data_files=files)
    assert source_fingerprint(local) == path_fingerprint(files)
    assert source_fingerprint(hub) != source_fingerprint(hub.model_copy(update={"path": "user/other"}))


def test_splits_are_of_about_the_size_asked_for(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_bytes(b"x\n" * 20)
    source = TextSource(name="books", type="text", path=str(tmp_path))
    sizes = [[item.name for item in split.items] for split in plan_splits(source, 100)]
    assert sizes == [[f"{n}.txt", f"{n + 1}.txt"] for n in range(0, 10, 2)]
    assert [split.name for split in plan_splits(source, 10)] == [f"books-{number:05d}" for number in range(10)]
    lines = source.model_copy(update={"split": "line"})
    assert [split.bytes for split in plan_splits(lines, 10)] == [10] * 40
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(b"x" * 100)
    alone: Source = JsonlSource(name="web", type="jsonl", path=str(packed))
    assert [split.bytes for split in plan_splits(alone, 10)] == [100]


def test_fingerprints_need_no_heavy_import(tmp_path: Path) -> None:
    """They are taken by every command, also by one that skips all stages."""
    lay_out(tmp_path)
    program = """
import sys
from pipeline.corpus.sources import source_fingerprint
from pipeline.recipe import HuggingFaceSource, JsonlSource, PythonSource
source_fingerprint(PythonSource(name="py", type="python_docs", packages=("stdlib", "numpy", "torch")))
source_fingerprint(JsonlSource(name="web", type="jsonl", path=sys.argv[1]))
source_fingerprint(HuggingFaceSource(name="hub", type="huggingface", path="user/set"))
print([name for name in ("torch", "pyarrow", "datasets", "transformers", "mlflow") if name in sys.modules])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

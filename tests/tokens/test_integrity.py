"""Shards that are not what the index says: found once a host, named, or left out alike by everybody."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.integrity import BadShard, Integrity
from pipeline.tokens.stream import LEFT_OUT, Stream
from pipeline.tokens.token_tars import ENDS_OFFSET


@pytest.fixture
def folder(tokens_of: Callable[..., TokenData], tmp_path: Path) -> Path:
    tokens_of(tmp_path / "tokens", {"a": 700, "b": 333})
    return tmp_path / "tokens"


def damage(folder: Path, number: int = 1) -> Path:
    """Flip a bit of one token, into another good token."""
    path = folder / "train" / f"a-00000-{number:03d}.tar"
    content = bytearray(path.read_bytes())
    content[640] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # surely another time: a clock's tick may be 10 ms
    return path


def test_a_bit_that_flipped_is_found_behind_the_use(folder: Path) -> None:
    path = damage(folder)
    with TokenData.open(folder, "first_touch") as data:
        stream = Stream(data, 10, 1, {})
        stream.batch(0, stream.windows, skip_bad=True)  # given out: nothing in it looks wrong
        data.integrity.settle()
        assert list(data.integrity.problems) == ["train/a-00000-001.tar"]
        where = "member a-00000-001-00000, whose tokens begin at byte 640, has changed (1 of 4 have)"
        words = f"{path}: damaged: its checksum is not the one in the index; {where}; put a good"
        with pytest.raises(BadShard, match=re.escape(words)):
            stream.batch(0, 1)


@pytest.mark.parametrize(("where", "words"), [("ends", "member a-00000-001-00002"), ("padding", "all its tokens are")])
def test_where_it_is_damaged(folder: Path, where: str, words: str) -> None:
    index = TokenData.open(folder).index
    shard = index.parts["train"]["a"][1]
    path = folder / shard.file
    content = bytearray(path.read_bytes())
    content[int(shard.members[2, ENDS_OFFSET]) if where == "ends" else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadShard, match=words):
        Integrity(folder, "always", index.dtype.itemsize).opened(shard, path)


def test_always_finds_it_before(folder: Path) -> None:
    damage(folder)
    stream = Stream(TokenData.open(folder, "always"), 10, 1, {})
    with pytest.raises(BadShard, match="its checksum"):
        stream.batch(0, stream.windows)


def test_what_was_good_is_remembered_until_it_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = Integrity._wrong

    def counted(self: Integrity, path: Path, shard: object) -> str:
        read.append(path.name)
        return whole(self, path, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(Integrity, "_wrong", counted)
    for _ in range(2):
        with TokenData.open(folder, "first_touch", tmp_path / "memory") as data:
            stream = Stream(data, 10, 1, {})
            stream.batch(0, stream.windows, skip_bad=True)
            data.integrity.settle()
            assert not data.integrity.problems
    assert len(read) == len(set(read)) == sum(len(shards) for shards in data.index.parts["train"].values())
    damage(folder)
    with TokenData.open(folder, "first_touch", tmp_path / "memory") as data:
        stream = Stream(data, 10, 1, {})
        stream.batch(0, stream.windows, skip_bad=True)
        data.integrity.settle()
        assert set(data.integrity.problems) == {"train/a-00000-001.tar"}
    assert read[-1] == "a-00000-001.tar" and read.count("a-00000-001.tar") == 2


def test_windows_of_bad_shards_are_left_out(folder: Path) -> None:
    whole = Stream(TokenData.open(folder), 10, 1, {})
    wanted = whole.batch(0, whole.windows)
    (folder / "train" / "a-00000-001.tar").unlink()
    data = TokenData.open(folder)
    stream = Stream(data, 10, 1, {})
    provisional = stream.batch(0, stream.windows, skip_bad=True)
    assert list(data.integrity.problems) == ["train/a-00000-001.tar"]
    stream.left_out = set(data.integrity.problems)
    found = stream.batch(0, stream.windows)
    out = (found == LEFT_OUT).all(axis=1)
    assert np.array_equal(found, provisional)
    assert 10 * (stream.windows - out.sum()) == stream.targets(0, stream.windows)
    assert out.sum() > 10
    assert np.array_equal(found[~out], wanted[~out])
    # tokens of source a count up: those of its second shard, and no window without one of them
    shard = data.index.parts["train"]["a"][1]
    first = data.index.parts["train"]["a"][0].tokens + 1
    inside = ((wanted >= first) & (wanted < first + shard.tokens)).any(axis=1)
    from_a = np.zeros(len(wanted), dtype=bool)
    for name, rows, _ in whole.places(0, whole.windows):
        from_a[rows] = name == "a"
    assert np.array_equal(out, inside & from_a)


def test_a_shard_that_is_cut_while_it_is_open_is_an_error_with_a_place(folder: Path) -> None:
    stream = Stream(TokenData.open(folder), 10, 1, {})
    stream.batch(0, stream.windows)
    path = folder / "train" / "a-00000-002.tar"
    with open(path, "r+b") as handle:  # a mapped file would end the process with SIGBUS
        handle.truncate(1500)
    with pytest.raises(DataError, match=r"a-00000-002.tar: ends before byte [\d,]+, in member \d, though it was whole"):
        stream.batch(0, stream.windows)

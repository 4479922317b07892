"""Token tars: what is written comes back, from mapped files."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, EnvironmentFault
from pipeline.files import sha256_file
from pipeline.tokens.data import TokenData
from pipeline.tokens.token_tars import (
    ENDS_OFFSET,
    OFFSET,
    TOKENS,
    Index,
    Shard,
    ShardWriter,
    documents,
    map_shard,
    read_index,
    token_dtype,
    write_index,
)

lengths = st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=8)  # of documents, batch by batch


def write(folder: Path, batches: list[list[int]], vocab_size: int, shard: int, member: int) -> list[Shard]:
    """Documents of the given lengths, with ids counting up through all of them."""
    first = 0
    with ShardWriter(folder, "train/x-00000", token_dtype(vocab_size), shard, member) as writer:
        for batch in batches:
            ends = np.cumsum(batch, dtype=np.int64)
            total = int(ends[-1]) if batch else 0
            writer.add(np.arange(first, first + total, dtype=np.uint32), ends, 10 * len(batch))
            first += total
    return writer.shards


@given(lengths, st.sampled_from([65_536, 65_537]), st.integers(1, 300), st.integers(1, 120))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_documents_come_back_whole(
    tmp_path: Path, batches: list[list[int]], vocab_size: int, shard_tokens: int, member_tokens: int
) -> None:
    shards = write(tmp_path, batches, vocab_size, shard_tokens, member_tokens)
    dtype = token_dtype(vocab_size)
    assert dtype.itemsize == (2 if vocab_size == 65_536 else 4)
    flat = [length for batch in batches for length in batch]
    found = [row for shard in shards for row in documents(tmp_path, shard, dtype)]
    assert [len(row) for row in found] == flat
    assert [token for row in found for token in row.tolist()] == list(range(sum(flat)))
    assert sum(shard.tokens for shard in shards) == sum(flat)
    assert sum(shard.documents for shard in shards) == len(flat)
    assert sum(shard.text_bytes for shard in shards) == 10 * len(flat)
    for shard in shards:
        content = (tmp_path / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        assert len(content) % tarfile.RECORDSIZE == 0
        # closed once full: all but the last member have their tokens, and would not without their last document
        for row in shard.members[:-1].tolist():
            assert row[TOKENS] >= member_tokens
        assert (shard.members[:, TOKENS] < member_tokens + 60).all()
    assert all(shard.tokens >= shard_tokens for shard in shards[:-1])
    assert not list(tmp_path.rglob("*.tmp"))


def test_payloads_are_aligned_and_plain_npy(tmp_path: Path) -> None:
    (shard,) = write(tmp_path, [[5, 7], [30, 2]], 65_536, 1000, 12)
    assert (shard.members[:, OFFSET] % 64 == 0).all() and (shard.members[:, ENDS_OFFSET] % 64 == 0).all()
    with tarfile.open(tmp_path / shard.file) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"x-00000-000-{number:05d}.{kind}.npy" for number in range(3) for kind in ("tokens", "ends")
        ]
        assert {(member.mtime, member.uid, member.gid, member.mode, member.uname) for member in members} == {
            (0, 0, 0, 0o644, "")
        }
        arrays = [np.load(io.BytesIO(tar.extractfile(member).read())) for member in members]  # type: ignore[union-attr]
    assert [array.dtype.name for array in arrays] == ["uint16", "uint32"] * 3
    assert arrays[0].tolist() == list(range(12)) and arrays[1].tolist() == [5, 12]
    assert arrays[3].tolist() == [30] and arrays[5].tolist() == [2]


def test_the_index_comes_back_and_names_its_tokens(tmp_path: Path) -> None:
    shards = tuple(write(tmp_path, [[5, 7], [30, 2], [3]], 700, 20, 12))
    assert len(shards) == 2
    index = Index(700, 0, {"train": {"x": shards}, "validation": {}})
    write_index(tmp_path, index)
    read = read_index(tmp_path)
    assert read.fingerprint == index.fingerprint
    assert [shard.to_json() for shard in read.parts["train"]["x"]] == [shard.to_json() for shard in shards]
    assert Index(700, 1, index.parts).fingerprint != index.fingerprint
    assert Index(700, 0, {"train": {"x": shards[::-1]}, "validation": {}}).fingerprint != index.fingerprint


def test_a_damaged_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.json: no such file"):
        read_index(tmp_path)
    path = write_index(tmp_path, Index(700, 0, {"train": {"x": tuple(write(tmp_path, [[5]], 700, 20, 12))}}))
    whole = path.read_text(encoding="utf-8")
    for text in (
        whole[:-20],
        "[]",
        whole.replace('"parts"', '"part"'),
        whole.replace(", 5, 1, 1]", ", 5, 1, 1.5]"),
        whole.replace(", 5, 1, 1]", ', "5", 1, 1]'),
        whole.replace(", 5, 1, 1]", ", 5, 1]"),
        whole.replace('"train/', '"train/../../'),
        whole.replace('"train/', '"/train/'),
        re.sub(r'(\.tar", \d+, )"[0-9a-f]{8}', r'\1"../../..', whole),
    ):
        assert text != whole
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"index.json: not an index of token tars"):
            read_index(tmp_path)
    for text in (whole.replace('"eos_id": 0', '"eos_id": 1'), whole.replace(", 5, 1, 1]", ", 6, 1, 1]")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"index.json: changed after it was written"):
            read_index(tmp_path)
    path.write_text(whole.replace('"format": 3', '"format": 2'), encoding="utf-8")
    with pytest.raises(DataError, match=r"index.json: has format 2, not 3; delete .* and tokenize again"):
        read_index(tmp_path)


def test_a_damaged_table_of_members(tmp_path: Path) -> None:
    write_index(tmp_path, Index(700, 0, {"train": {"x": tuple(write(tmp_path, [[5]], 700, 20, 12))}}))
    path = tmp_path / "members.npy"
    whole = path.read_bytes()
    for content in (b"", whole[:-8], whole[:-1] + b"\1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"members.npy: changed after it was written"):
            read_index(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"members.npy: no such file; stage tokenize makes it"):
        read_index(tmp_path)


@pytest.mark.parametrize("table", [np.zeros((1, 3), np.int64), np.zeros((1, 4)), np.array([[576, -1, 704, 1]])])
def test_a_table_of_other_things(tmp_path: Path, table: np.ndarray) -> None:
    path = write_index(tmp_path, Index(700, 0, {"train": {"x": tuple(write(tmp_path, [[5]], 700, 20, 12))}}))
    before = sha256_file(tmp_path / "members.npy")
    np.save(tmp_path / "members.npy", table)
    after = sha256_file(tmp_path / "members.npy")
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    with pytest.raises(DataError, match=r"no table of members"):
        read_index(tmp_path)


def test_an_index_of_nothing(tmp_path: Path) -> None:
    write_index(tmp_path, Index(700, 0, {"train": {}, "validation": {}}))
    assert list(read_index(tmp_path).shards()) == []


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    (shard,) = write(tmp_path, [[5, 7, 30, 2]], 700, 1000, 12)
    path = tmp_path / shard.file
    whole = path.read_bytes()
    for size in (0, 700, len(whole) - 1, len(whole) + 1):
        path.write_bytes((whole + b"\0")[:size])
        with pytest.raises(DataError, match=rf"{path.name}: truncated or changed: {size:,} bytes where the index says"):
            map_shard(tmp_path, shard, np.dtype(np.uint16))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.files.secrets.token_hex", lambda count: "own")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x-00000-000.tar.own.tmp").symlink_to("/dev/full")
    with pytest.raises(EnvironmentFault, match=r"x-00000-000.tar: the disk is full"):
        write(tmp_path, [[100_000]], 700, 1000, 12)
    assert not list((tmp_path / "train").iterdir())


def test_an_error_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "train/x", np.dtype(np.uint16), 100, 5) as writer:
        writer.add(np.arange(9), np.array([9]), 9)
        assert list((tmp_path / "train").iterdir())
        raise KeyboardInterrupt
    assert not list((tmp_path / "train").iterdir())


def test_token_data(tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    data = tokens_of(tmp_path, {"b": 100, "a": 210}, validation={"a": 30})
    assert data.sources("train") == ["a", "b"] and data.sources("validation") == ["a"]
    assert (data.tokens("train"), data.tokens("train", "b"), data.tokens("validation")) == (310, 100, 30)
    assert (data.bytes("train"), data.bytes("validation")) == (930, 90)
    assert data.documents("validation") == 5
    assert (data.vocab_size, data.eos_id) == (70_000, 0)
    with pytest.raises(DataError, match=r"no source 'c' in train; there are: a, b"):
        data.source("train", "c")


def test_a_trillion_tokens_open_in_little_memory(tmp_path: Path) -> None:
    """Only the index is read: 60,000 members in 3,750 tars take less than 4 MB (ten trillion: ten times that)."""
    members = np.tile(np.array([640, 1 << 24, 33_555_072, 9000, 0]), (16, 1))
    shards = tuple(Shard.of(f"train/x-{n:05d}-000.tar", 1 << 29, f"{n:064x}", 1 << 30, members) for n in range(3_750))
    write_index(tmp_path, Index(100_000, 0, {"train": {"x": shards}, "validation": {}}))
    tracemalloc.start()
    data = TokenData.open(tmp_path)
    source = data.source("train", "x")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == data.tokens("train") > 10**12
    assert held < 4e6

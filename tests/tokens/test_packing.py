"""Best-fit packing: every token a target once, whole documents, little padding; one layout, whoever makes it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.tokens import packing
from pipeline.tokens.data import TokenData
from pipeline.tokens.integrity import BadShard
from pipeline.tokens.packing import lay_out, pack
from pipeline.tokens.stream import LEFT_OUT, Stream
from pipeline.tokens.token_tars import Index, ShardWriter, write_index
from pipeline.tokens.windows import PADDING

EOS = 0
LENGTHS = np.random.default_rng(5).integers(1, 24, 300)


def write(folder: Path, lengths: dict[str, list[int]]) -> TokenData:
    """Sources of documents of these lengths; all tokens differ, but for the ends of text."""
    train, first = {}, 1
    for source, wanted in lengths.items():
        with ShardWriter(folder, f"train/{source}-00000", np.dtype(np.uint16), 500, 150) as writer:
            for length in wanted:
                ids = np.append(np.arange(first, first + length - 1), EOS)
                first += length - 1
                writer.add(ids, np.array([length]), length)
        train[source] = tuple(writer.shards)
    write_index(folder, Index(60_000, EOS, {"train": train, "validation": {}}))
    return TokenData.open(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    folder = tmp_path_factory.mktemp("packing") / "tokens"
    return write(folder, {"a": LENGTHS.tolist(), "b": [1, 100, 3, 16, 17, 1, 33]})


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 32))
@settings(deadline=None)
def test_each_token_has_one_place(lengths: list[int], seq_len: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes + 1000
    pieces, windows = lay_out(starts, sizes, seq_len)
    assert windows["targets"].max() <= seq_len and windows["first"][0] == 0
    targets = []
    for window, laid in enumerate(np.split(pieces, windows["first"][1:])):
        own = int(laid["length"].sum()) - int(windows["targets"][window])
        assert own in (0, 1)  # the context of a document that goes on: only the first of a window may
        for number, (start, length) in enumerate(laid.tolist()):
            skipped = own if number == 0 else 0
            targets += list(range(start + skipped, start + length))
            assert (start + skipped in starts) != bool(skipped)
    assert sorted(targets) == list(range(1000, 1000 + sizes.sum()))
    # of two windows that are no longer than a half each, one would not have been opened
    ends = np.append(windows["first"][1:], len(pieces))
    goes_on = [
        pieces["length"][begin:end].sum() > filled
        for begin, end, filled in zip(windows["first"], ends, windows["targets"], strict=True)
    ]
    assert sum(2 * filled <= seq_len and not on for filled, on in zip(windows["targets"], goes_on, strict=True)) <= 1


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 99), seq_len=st.integers(3, 40), world=st.sampled_from([1, 2, 3, 4, 8]))
def test_an_epoch_is_every_document_once(data: TokenData, tmp_path: Path, seed: int, seq_len: int, world: int) -> None:
    stream = Stream(data, seq_len, seed, {}, packed=pack(data, seq_len, tmp_path))
    whole = stream.batch(stream.windows, stream.windows)  # the second epoch
    targets = Counter(whole[:, 1:][whole[:, 1:] >= 0].tolist())
    assert set(targets.values()) - {targets[EOS]} == {1} and targets[EOS] == len(LENGTHS) + 7
    assert sum(targets.values()) == data.tokens("train") == stream.targets(stream.windows, stream.windows)
    for row in whole:
        end = len(row) - int((row == PADDING).sum())
        assert (row[end:] == PADDING).all() and (row[:end] >= 0).all()
        follows = row[:end][1:]
        before = row[:end][:-1]
        assert (follows == before + 1)[(before != EOS) & (follows != EOS)].all()  # no document is torn within a window
    again = Stream(TokenData.open(data.folder), seq_len, seed, {}, packed=pack(data, seq_len, tmp_path))
    assert again.fingerprint == stream.fingerprint
    first = stream.windows - 5
    parts = [again.batch(first + rank * 2, 2) for rank in reversed(range(world))][::-1]
    assert np.array_equal(np.concatenate(parts), stream.batch(first, 2 * world))


def test_documents_that_fit_are_whole_and_little_is_empty(data: TokenData, tmp_path: Path) -> None:
    stream = Stream(data, 24, 1, {}, packed=pack(data, 24, tmp_path))
    whole = stream.batch(0, stream.windows)
    begun = sum(
        int((row[1:] == EOS).sum()) for name, rows, _ in stream.places(0, stream.windows) for row in whole[rows]
    )
    assert begun == len(LENGTHS) + 7 and stream.unused == 0
    cut_by_chance = Stream(data, 24, 1, {})
    assert "packing" not in cut_by_chance.about and cut_by_chance.fingerprint != stream.fingerprint
    assert 0 < stream.padding < 0.02 and cut_by_chance.padding == 0
    assert stream.padding == pytest.approx(float((whole == PADDING).sum()) / whole[:, 1:].size)


def test_the_layout_is_the_same_whoever_makes_it(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "GROUP", 40)
    with ThreadPoolExecutor(3) as pool:  # as ranks do
        list(pool.map(lambda _: pack(data, 16, tmp_path / "together"), range(3)))
    monkeypatch.setattr(packing, "THREADS", 1)
    pack(data, 16, tmp_path / "alone")
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()}
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_a_layout_that_was_cut_is_made_again(data: TokenData, tmp_path: Path) -> None:
    wanted = Stream(data, 16, 1, {}, packed=pack(data, 16, tmp_path)).batch(0, 40)
    (pieces,) = tmp_path.rglob("0.pieces")
    pieces.write_bytes(pieces.read_bytes()[:-12])
    (pieces.parent / "1.pieces.0123.tmp").write_bytes(b"half")
    assert np.array_equal(Stream(data, 16, 1, {}, packed=pack(data, 16, tmp_path)).batch(0, 40), wanted)
    assert not list(tmp_path.rglob("*.tmp"))


def test_bad_shards_are_named_or_left_out(tmp_path: Path) -> None:
    data = write(tmp_path / "tokens", {"a": LENGTHS.tolist()})
    stream = Stream(data, 16, 1, {}, packed=pack(data, 16, tmp_path / "packing"))
    wanted = stream.batch(0, stream.windows)
    shard = data.index.parts["train"]["a"][1]
    path = tmp_path / "tokens" / shard.file
    content = bytearray(path.read_bytes())
    at = int(shard.members[1, 0]) + 6
    content[at : at + 2] = b"\xff\xff"
    path.write_bytes(content)
    with pytest.raises(BadShard, match=rf"a-00000-001.tar: damaged at byte {at:,}, in member 1: token 65,535"):
        stream.batch(0, stream.windows)
    stream.left_out = {shard.file}
    found = stream.batch(0, stream.windows)
    out = (found == LEFT_OUT).all(axis=1)
    assert 20 < out.sum() < stream.windows and np.array_equal(found[~out], wanted[~out])
    assert stream.targets(0, stream.windows) == (found[:, 1:] >= 0).sum()
    ends = int(shard.members[0, 2])
    content[ends : ends + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(BadShard, match=rf"001.tar: damaged at byte {ends:,}, in member 0: the ends of its documents"):
        pack(TokenData.open(tmp_path / "tokens"), 16, tmp_path / "anew")

"""The training stream: exact, elastic, and a function of k alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import Stream

SIZES = {"a": 700, "b": 333, "c": 101}


@pytest.fixture(scope="module")
def data(tokens_of: Callable[..., TokenData], tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tokens_of(tmp_path_factory.mktemp("stream"), SIZES, validation={"a": 50})


seeds, lengths = st.integers(0, 2**32 - 1), st.integers(1, 50)
weights = st.fixed_dictionaries({}, optional={name: st.floats(0.05, 20) for name in SIZES})


@given(seeds, lengths)
def test_each_window_once_an_epoch_in_a_new_order(data: TokenData, seed: int, seq_len: int) -> None:
    stream = Stream(data, seq_len, seed, {})
    wanted = {(name, w) for name, size in SIZES.items() for w in range((size - 1) // seq_len)}
    assert stream.windows == len(wanted)
    assert stream.unused == sum(size - (size - 1) // seq_len * seq_len for size in SIZES.values())
    orders = []
    for epoch in (0, 1, 10**9):
        found = stream.places(epoch * stream.windows, stream.windows)
        assert sorted((name, w) for name, _, windows in found for w in windows.tolist()) == sorted(wanted)
        orders.append([windows.tolist() for _, _, windows in found])
    if len(wanted) > 60:
        assert orders[0] != orders[1] and orders[1] != orders[2]


@given(seeds, lengths, weights)
@settings(deadline=None)
def test_windows_are_runs_of_their_source(data: TokenData, seed: int, seq_len: int, weight: dict[str, float]) -> None:
    """Tokens count up, so that a window is right when it counts up from where it should begin."""
    stream = Stream(data, seq_len, seed, weight)
    batch = stream.batch(17, 40)
    assert batch.shape == (40, seq_len + 1) and batch.dtype == np.int64
    for _, rows, windows in stream.places(17, 40):
        for row, window in zip(rows.tolist(), windows.tolist(), strict=True):
            assert batch[row].tolist() == list(range(window * seq_len + 1, (window + 1) * seq_len + 2))


@given(seeds, lengths, weights, st.integers(0, 10**12), st.data())
@settings(deadline=None)
def test_ranks_restarts_and_workers_change_nothing(
    data: TokenData, seed: int, seq_len: int, weight: dict[str, float], first: int, draw: st.DataObject
) -> None:
    """Any way to cut k = first … first+23 into batches, on any number of ranks, by a stream opened anew, is equal."""
    whole = Stream(data, seq_len, seed, weight).batch(first, 24)
    world = draw.draw(st.sampled_from([1, 2, 3, 4, 8]))
    again = Stream(TokenData.open(data.folder), seq_len, seed, weight)  # a restart: its state is k
    share = 24 // world
    pieces = [again.batch(first + rank * share, share) for rank in reversed(range(world))][::-1]
    assert np.array_equal(whole, np.concatenate(pieces))
    singles = [again.batch(first + k, 1) for k in range(24)]
    assert np.array_equal(whole, np.concatenate(singles))


@given(seeds, weights)
def test_a_weighted_source_is_passed_over_so_often(data: TokenData, seed: int, weight: dict[str, float]) -> None:
    stream = Stream(data, 10, seed, weight)
    found = Counter[str]()
    for name, rows, windows in stream.places(3 * stream.windows, stream.windows):
        found[name] += len(rows)
        times = Counter(windows.tolist())  # of the source's windows; passes are whole, so these differ by 2 at most
        assert max(times.values()) - min(times[w] for w in range(stream.counts[name])) <= 2
    assert dict(found) == stream.quotas
    heaviest = min(max(weight.get(name, 1.0) for name in SIZES), 1.0)
    for name in SIZES:
        assert abs(stream.quotas[name] - weight.get(name, 1.0) / heaviest * stream.counts[name]) <= 1


def test_the_fingerprint_names_the_order(data: TokenData, tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    stream = Stream(data, 10, 1, {"a": 2.0})
    assert stream.fingerprint == Stream(data, 10, 1, {"a": 2.0, "b": 1.0}).fingerprint
    other = tokens_of(tmp_path, {**SIZES, "c": 102})
    for changed in (
        Stream(data, 11, 1, {"a": 2.0}),
        Stream(data, 10, 2, {"a": 2.0}),
        Stream(data, 10, 1, {}),
        Stream(other, 10, 1, {"a": 2.0}),
    ):
        assert changed.fingerprint != stream.fingerprint
    assert not np.array_equal(stream.batch(0, 20), Stream(data, 10, 2, {"a": 2.0}).batch(0, 20))


def test_a_source_shorter_than_a_window_is_named(data: TokenData) -> None:
    with pytest.raises(
        DataError, match=r"source c has 101 tokens, less than one window of 102; lower pretrain.seq_len"
    ):
        Stream(data, 101, 1, {})
    assert Stream(data, 100, 1, {}).counts["c"] == 1


def test_no_training_tokens(tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens to train on"):
        Stream(tokens_of(tmp_path, {}), 10, 1, {})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_weights(data: TokenData, weight: float) -> None:
    with pytest.raises(DataError, match="source b: weight"):
        Stream(data, 10, 1, {"b": weight})


def test_a_cut_shard_is_named(tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    stream = Stream(tokens_of(tmp_path, {"a": 700}), 10, 1, {})
    shard = tmp_path / "train" / "a-00000-001.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a-00000-001.tar: truncated or changed: 1,500 bytes .* \(\d of \d members"):
        stream.batch(0, stream.windows)
    shard.unlink()
    with pytest.raises(DataError, match=r"a-00000-001.tar: cannot be read \(No such file"):
        stream.batch(0, stream.windows)


def test_few_shards_are_mapped_at_a_time(data: TokenData, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Stream(data, 10, 1, {}).batch(0, 60)
    monkeypatch.setattr("pipeline.tokens.data.OPEN_SHARDS", 2)
    again = TokenData.open(data.folder)
    assert np.array_equal(Stream(again, 10, 1, {}).batch(0, 60), wanted)
    assert len(again.files._open) == 2

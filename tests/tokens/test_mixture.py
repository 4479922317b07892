"""Shares of a mix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.mixture import Mixture

quotas_lists = st.lists(st.integers(1, 400), min_size=1, max_size=12)


def order(mixture: Mixture, first: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The source of each place, and which of the source's items it is."""
    sources, items = np.full(count, -1), np.full(count, -1)
    for source, begin, rows in mixture.sources(first, count):
        assert (sources[rows] == -1).all()
        sources[rows] = source
        items[rows] = begin + np.arange(len(rows))
    assert (sources >= 0).all()
    return sources, items


@given(quotas_lists)
def test_an_epoch_holds_exactly_the_quotas(quotas: list[int]) -> None:
    mixture = Mixture(quotas)
    for epoch in (0, 1, 10**12):
        sources, items = order(mixture, epoch * mixture.epoch, mixture.epoch)
        assert np.bincount(sources, minlength=len(quotas)).tolist() == quotas
        for source, quota in enumerate(quotas):
            assert items[sources == source].tolist() == list(range(epoch * quota, (epoch + 1) * quota))


@given(quotas_lists)
@settings(max_examples=200)
def test_shares_are_exact_at_every_moment(quotas: list[int]) -> None:
    mixture = Mixture(quotas)
    sources, _ = order(mixture, 0, mixture.epoch)
    places = np.arange(1, mixture.epoch + 1)
    for source, quota in enumerate(quotas):
        error = np.cumsum(sources == source) - places * quota / mixture.epoch
        assert np.abs(error).max() <= 1.5
        if len(quotas) <= 3:
            assert np.abs(error).max() <= 1


@given(quotas_lists, st.integers(0, 10**15), st.integers(1, 200), st.data())
def test_any_cut_gives_the_same_order(quotas: list[int], first: int, count: int, data: st.DataObject) -> None:
    mixture = Mixture(quotas)
    cut = data.draw(st.integers(0, count))
    whole = order(mixture, first, count)
    parts = order(mixture, first, cut), order(mixture, first + cut, count - cut)
    for column in (0, 1):
        assert np.array_equal(whole[column], np.concatenate([parts[0][column], parts[1][column]]))


def test_quotas_of_a_corpus_of_ten_trillion_tokens() -> None:
    quotas = [40_000_000_000, 30_000_000_001, 9_000_000_000, 77]  # windows of 128 tokens
    sources, _ = order(Mixture(quotas), 5 * sum(quotas) + 12_345_678_901, 100_000)
    shares = np.bincount(sources, minlength=4) / 100_000
    assert np.allclose(shares, np.array(quotas) / sum(quotas), atol=2e-5)

"""Shares of a mix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens import mixture as mixture_module
from pipeline.tokens import timetable
from pipeline.tokens.mixture import RAREST, Mixture

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


def largest_error(mixture: Mixture, quotas: list[int]) -> float:
    """The largest distance of a source's count from its share, over all places of an epoch."""
    sources, _ = order(mixture, 0, mixture.epoch)
    places = np.arange(1, mixture.epoch + 1)
    return max(
        float(np.abs(np.cumsum(sources == source) - places * quota / mixture.epoch).max())
        for source, quota in enumerate(quotas)
    )


@given(quotas_lists)
@settings(max_examples=200)
def test_shares_are_exact_at_every_moment(quotas: list[int]) -> None:
    mixture = Mixture(quotas)
    assert largest_error(mixture, quotas) <= mixture.bound + 1e-9
    assert mixture.bound == (1.0 if len(quotas) > 2 else 0.5 if len(quotas) == 2 else 0.0)
    cut = mixture.epoch // 3
    sources, _ = order(mixture, 0, cut)
    assert mixture.counts(cut) == np.bincount(sources, minlength=len(quotas)).tolist()


@given(st.lists(st.integers(1, 400) | st.integers(100, 110), min_size=3, max_size=40), st.data())
@settings(max_examples=200)
def test_they_are_across_the_borders_of_blocks(quotas: list[int], data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timetable, "SHORTEST", 1)  # in use, such epochs are one block
        mixture, fresh = Mixture(quotas), Mixture(quotas)
    assert largest_error(mixture, quotas) < 1
    begin = data.draw(st.integers(0, 2 * mixture.epoch))
    rest = 2 * mixture.epoch - begin
    for whole, part in zip(order(mixture, 0, 2 * mixture.epoch), order(fresh, begin, rest), strict=True):
        assert np.array_equal(whole[begin:], part)


def test_they_are_among_a_hundred_sources() -> None:
    quotas = [3 + source * source % 101 for source in range(100)]
    assert largest_error(Mixture(quotas), quotas) < 1


@given(st.lists(st.integers(8, 60), min_size=2, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(max_examples=200)
def test_rare_sources_add_half_a_window(common: list[int], rare: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture_module, "RAREST", 8)
        mixture = Mixture(common + rare)
    assert largest_error(mixture, common + rare) <= mixture.bound + 1e-9
    assert order(mixture, 3, 0)[0].size == 0


def test_a_very_rare_source_has_its_turns_among_the_others() -> None:
    quotas = [3 * RAREST, 2 * RAREST, RAREST, 1]
    mixture = Mixture(quotas)
    assert mixture.bound == 1.5
    middle = mixture.epoch // 2
    sources, _ = order(mixture, middle - 500, 1000)
    assert np.bincount(sources, minlength=4).tolist()[3] == 1
    assert mixture.counts(middle - 500)[3] == 0 and mixture.counts(middle + 500)[3] == 1
    assert mixture.counts(mixture.epoch) == quotas


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

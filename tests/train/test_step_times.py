"""Slow ranks: named after some intervals, once, and again only when they have recovered in between."""

from __future__ import annotations

import time

import torch

from pipeline.settings.training import WatchdogSettings
from pipeline.train.step_times import OwnTime, Slow, StepTimes

EVEN = [1.0, 1.05, 0.95, 1.0]
SLOW = [1.0, 1.05, 2.0, 1.0]


def compared(*intervals: list[float], step_seconds: float = 3.0) -> list[list[Slow]]:
    times, news = StepTimes(WatchdogSettings(slow_intervals=3)), []
    for own in intervals:
        assert times.compare(own, step_seconds)["step_seconds/slowest"] == max(own)
        news.append(times.news)
    return news


def test_a_slow_rank_is_named_once_until_it_recovers() -> None:
    news = compared(EVEN, SLOW, SLOW, SLOW, SLOW, EVEN, SLOW, SLOW, SLOW)
    assert [len(found) for found in news] == [0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert news[3] == news[8] == [Slow(2, 2.0, 1.0)]
    assert news[5] == [Slow(2, 0.95, 1.0, recovered=True)]


def test_one_slow_interval_is_nothing() -> None:
    assert not any(compared(SLOW, SLOW, EVEN, SLOW, SLOW, EVEN))


def test_of_two_ranks_the_slower_is_compared_with_the_other() -> None:
    assert compared([1.0, 1.4], [1.0, 1.4], [1.0, 1.4])[-1] == [Slow(1, 1.4, 1.0)]


def test_what_costs_little_of_a_step_is_not_worth_a_line() -> None:
    assert not any(compared(*[[0.01, 0.02]] * 4, step_seconds=1.0))


def test_one_rank_alone_is_never_slow() -> None:
    assert not any(compared(*[[5.0]] * 4))


def test_own_time_counts_only_what_is_measured() -> None:
    own, began = OwnTime(torch.device("cpu")), time.perf_counter()
    for _ in range(2):
        own.steps += 1
        with own.measured():
            time.sleep(0.05)
        time.sleep(0.1)
    assert 0.05 <= own.take() <= (time.perf_counter() - began) / 2 - 0.1
    assert own.take() == 0.0

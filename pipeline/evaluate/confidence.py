"""How sure a measured number is: bootstrap intervals, and paired tests between two models. All by SciPy, all seeded.

An interval is that of the percentile bootstrap over the held-out examples (Efron & Tibshirani 1993): which texts were
held out is chance, the model is not. A paired test swaps the two models' results example by example at random and asks
how often the difference becomes as large (a permutation test of pairs): p is two-sided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
SEED = 12345  # of the draws; the same as sacrebleu's own, so that equal inputs give equal intervals everywhere
HELD = 1 << 24  # numbers that are held at once: 128 MiB

Column = Sequence[Any] | NDArray[Any]  # a value an example
Interval = list[float]  # [low, high]
Statistic = Callable[..., Any]


def mean(values: Any, axis: int = -1) -> Any:
    """The mean, as SciPy calls a statistic."""
    return np.mean(values, axis=axis)


def ratio(numerators: Any, denominators: Any, axis: int = -1) -> Any:
    """Sum over sum: nats of all documents over bytes of all documents."""
    return np.sum(numerators, axis=axis) / np.sum(denominators, axis=axis)


def interval(statistic: Statistic, *columns: Column, vectorized: bool = True) -> Interval | None:
    """The 95% interval of a statistic of examples; None for a single example, of which nothing can be said.

    Args: statistic, of as many columns as are given; columns, a value an example each; vectorized, whether the
    statistic takes `axis` and many resamples at once.
    """
    from scipy.stats import bootstrap

    data = tuple(np.asarray(column) for column in columns)
    if len(data[0]) < 2:
        return None
    found = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, HELD // len(data[0])),
        vectorized=vectorized,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def paired_p(statistic: Statistic, ours: Column, theirs: Column, vectorized: bool = True) -> float | None:
    """The two-sided p-value of a difference between two models on the same examples; None for a single one.

    Args: statistic, the difference, of both columns; ours and theirs, a value an example each. With few examples all
    swaps are tried, and p is exact.
    """
    from scipy.stats import permutation_test

    if len(ours) < 2:
        return None
    found = permutation_test(
        (np.asarray(ours), np.asarray(theirs)),
        statistic,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(1, HELD // len(ours)),
        vectorized=vectorized,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)

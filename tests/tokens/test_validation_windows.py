"""The validation set: every held-out token a target once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.validation import PADDING, ValidationWindows


@given(st.integers(1, 130), st.integers(1, 400), st.integers(1, 60))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_every_token_is_a_target_once(
    tokens_of: Callable[..., TokenData], tmp_path: Path, first: int, second: int, seq_len: int
) -> None:
    data = tokens_of(tmp_path, {}, validation={"a": first, "b": second})
    windows = ValidationWindows(data, seq_len)
    batch = windows.batch(0, len(windows))
    targets = np.where(batch[:, 1:] < 0, -100, batch[:, 1:])
    found = np.sort(targets[targets >= 0])
    assert found.tolist() == sorted([*range(1, first + 1), *range(1, second + 1)])
    inputs = np.maximum(batch[:, :-1], 0)
    before = np.where(targets > 1, targets - 1, data.eos_id)  # tokens count up; the first follows an end of text
    assert np.array_equal(inputs[targets >= 0], before[targets >= 0])
    assert (batch[:, 0] != PADDING).all()
    assert ((batch == PADDING).any(axis=1)).sum() <= 2


def test_the_order_is_fixed_and_any_cut_gives_it(tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    data = tokens_of(tmp_path, {"a": 100}, validation={"a": 600, "b": 300})
    windows = ValidationWindows(data, 9)
    whole = windows.batch(0, len(windows))
    assert np.array_equal(whole, np.concatenate([windows.batch(k, 1) for k in range(len(windows))]))
    assert np.array_equal(whole, ValidationWindows(TokenData.open(tmp_path), 9).batch(0, len(windows)))
    sample = whole[:20, 1]  # tokens count up: a beginning covers the whole
    assert sample.max() - sample.min() > 300
    with pytest.raises(IndexError):
        windows.batch(len(windows), 1)


def test_nothing_held_out(tokens_of: Callable[..., TokenData], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokens are held out for validation; raise corpus.validation"):
        ValidationWindows(tokens_of(tmp_path, {"a": 100}), 10)

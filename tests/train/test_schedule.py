"""The learning rate by step, by hand and for every setting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import ScheduleSettings
from pipeline.train.schedule import learning_rate_factor


def factors(steps: int, **settings: object) -> list[float]:
    chosen = ScheduleSettings.model_validate(settings)
    return [learning_rate_factor(chosen, step, steps) for step in range(steps)]


def test_cosine_by_hand() -> None:
    assert factors(6, name="cosine", warmup=1 / 3, final=0.0) == pytest.approx(
        [0.5, 1.0, 0.904508, 0.654508, 0.345492, 0.095492], abs=1e-6
    )


def test_wsd_by_hand() -> None:
    assert factors(10, name="wsd", warmup=0.2, decay=0.4, final=0.0) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )


def test_constant_by_hand() -> None:
    assert factors(4, name="constant", warmup=0.5) == [0.5, 1.0, 1.0, 1.0]


def test_no_warmup_starts_at_the_peak() -> None:
    assert factors(3, name="wsd", warmup=0, decay=0) == [1.0, 1.0, 1.0]


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 200),
)
def test_never_above_the_peak_nor_below_the_end(
    name: str, warmup: float, decay: float, final: float, steps: int
) -> None:
    found = factors(steps, name=name, warmup=warmup, decay=decay, final=final)
    peak = found.index(max(found))
    assert all(0 < factor <= 1 + 1e-9 for factor in found[: peak + 1])
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert min(found[peak:]) >= final - 1e-9

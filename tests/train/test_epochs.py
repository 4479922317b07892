"""The order of examples: each once an epoch, a pure function of the step, little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.epochs import Epochs, padded_length


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_each_example_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    epochs = Epochs(lengths, batch, seed)
    for epoch in range(2):
        steps = range(epoch * epochs.steps, (epoch + 1) * epochs.steps)
        seen = [number for step in steps for number in epochs.examples(step) if number >= 0]
        assert sorted(seen) == list(range(len(lengths)))
    assert epochs.steps == -(-len(lengths) // batch)
    assert all((epochs.examples(step) >= 0).any() for step in range(epochs.steps))  # no step learns nothing


def test_order_is_a_function_of_the_step_and_new_in_each_epoch() -> None:
    lengths = list(range(1, 101))
    first, again = Epochs(lengths, 8, 7), Epochs(lengths, 8, 7)
    later = [again.examples(step).tolist() for step in reversed(range(26))][::-1]
    assert [first.examples(step).tolist() for step in range(26)] == later
    assert later[:13] != later[13:]
    assert later != [Epochs(lengths, 8, 8).examples(step).tolist() for step in range(26)]


def test_a_batch_holds_like_lengths() -> None:
    lengths = np.random.RandomState(0).randint(1, 500, size=1600)
    epochs = Epochs(lengths, 16, 1)
    widths = [lengths[epochs.examples(step)].max() for step in range(epochs.steps)]
    assert sum(widths) * 16 < 1.1 * lengths.sum()


def test_places_of_a_short_batch_are_empty() -> None:
    epochs = Epochs([1, 2, 3], 4, 0)
    assert sorted(epochs.example(sequence) for sequence in range(4)) == [-1, 0, 1, 2]
    assert epochs.example(-1) == -1


def test_widths_are_multiples_of_eight_up_to_the_limit() -> None:
    assert [padded_length(longest, 20) for longest in (0, 1, 8, 9, 17, 20)] == [1, 8, 8, 16, 20, 20]

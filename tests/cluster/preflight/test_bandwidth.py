"""In which order pairs of nodes are measured, and a rank that is alone. Speeds between ranks: test_preflight.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.device import find_device
from pipeline.cluster.preflight.bandwidth import all_reduce_speeds, pair_speeds, rounds
from pipeline.cluster.ranks import ALONE


@given(st.integers(1, 12))
def test_rounds_hold_every_pair_once_and_no_node_twice(count: int) -> None:
    both = list(rounds(count))
    assert sorted(pair for pairs in both for pair in pairs) == [
        (low, high) for low in range(count) for high in range(low + 1, count)
    ]
    assert all(len({node for pair in pairs for node in pair}) == 2 * len(pairs) for pairs in both)


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_one_rank_has_no_links() -> None:
    device = find_device(ALONE)
    assert all_reduce_speeds(device) == []
    assert pair_speeds({"node1": 0}, device) == {}

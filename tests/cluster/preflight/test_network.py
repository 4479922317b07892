"""The thread of collectives: what comes out of it, where it can talk and where it cannot. Ranks: test_preflight.py."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from pipeline.cluster.device import find_device
from pipeline.cluster.launch import free_port
from pipeline.cluster.preflight.network import Network
from pipeline.cluster.ranks import ALONE, Ranks

PATIENCE = 120.0


def outcome(ranks: Ranks, patience: float) -> object:
    network = Network(ranks, find_device(ALONE), {"node1": 0}, floor=1e6, patience=patience)
    network.start()
    network.join(PATIENCE)
    assert not network.is_alive()
    assert not dist.is_initialized()
    return network.outcome


def test_a_rank_alone_has_nothing_to_measure() -> None:
    assert outcome(ALONE, PATIENCE) == {"all_reduce": [], "pairs": []}


def test_a_store_that_is_gone_is_an_outcome(capfd: pytest.CaptureFixture[str]) -> None:
    found = outcome(Ranks(1, 2, 1, 2, "local", "127.0.0.1", port := free_port()), 0.0)
    assert isinstance(found, dict)
    assert list(found) == ["error"]
    assert f"rank 0 did not answer at 127.0.0.1:{port}" in found["error"]
    assert "Traceback" not in capfd.readouterr().err

"""What the device finder says about this machine, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.cluster import device as devices
from pipeline.cluster.device import compiler, find_device, gpu_count, matmul_peak, threads_of
from pipeline.cluster.ranks import ALONE, Ranks, cores
from pipeline.errors import EnvironmentFault


def test_finds_a_device_that_computes() -> None:
    device = find_device(ALONE)
    assert device.kind == ("cuda" if gpu_count() else "cpu")
    assert torch.ones(2, device=device.torch_device).sum() == 2
    assert device.name in device.describe()
    assert matmul_peak(device, torch.float32) > 1e8


def test_a_busy_machine_has_a_peak_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product alone took longer than is measured."""
    monkeypatch.setattr(devices, "PEAK_SECONDS", 0.0)
    assert matmul_peak(find_device(ALONE), torch.float32) > 0


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of(ALONE) == cores()
    assert threads_of(Ranks(0, 1000, 0, 1000, "local")) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(ALONE) == 3


def test_no_compiler_on_an_empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler() is None
    (tmp_path / "g++").touch(mode=0o755)
    assert compiler() == str(tmp_path / "g++")


@pytest.mark.skipif(gpu_count() < 2, reason="needs two GPUs")
def test_more_ranks_than_gpus_are_refused() -> None:
    count = gpu_count() + 1
    with pytest.raises(EnvironmentFault, match="start one rank a GPU"):
        find_device(Ranks(count - 1, count, count - 1, count, "local"))

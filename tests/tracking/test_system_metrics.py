"""The machine's load, with GPUs and without, and with a driver that fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.errors import EnvironmentFault
from pipeline.system_metrics import Sampler, gpu_load


def sample(folder: Path, number: int) -> list[Mapping[str, float]]:
    found: list[Mapping[str, float]] = []
    enough = threading.Event()

    def record(metrics: Mapping[str, float]) -> None:
        found.append(metrics)
        if len(found) == number:
            enough.set()

    sampler = Sampler(folder, record, seconds=0.01)
    sampler.start()
    assert enough.wait(300)
    sampler.stop()
    assert not sampler.is_alive()
    return found


def test_a_full_disk_ends_the_sampling_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def record(metrics: Mapping[str, float]) -> None:
        raise EnvironmentFault("the disk is full")

    sampler = Sampler(tmp_path, record, seconds=0.01)
    sampler.start()
    sampler.join(300)
    assert not sampler.is_alive()
    assert "Traceback" not in capsys.readouterr().err


def program(folder: Path, text: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_load_is_named_as_mlflow_names_it(tmp_path: Path) -> None:
    last = sample(tmp_path, 2)[-1]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(last)
    assert 0 <= last["system/disk_usage_percentage"] <= 100


def test_each_gpu_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.system_metrics.QUERY_SECONDS", 300.0)  # of a busy machine
    found = gpu_load(str(program(tmp_path, "echo '0, 97, 70000, 140000, 650.5'; echo '1, 0, 10, 140000, [N/A]'")))
    assert found["gpu_0_utilization_percentage"] == 97
    assert found["gpu_0_memory_usage_percentage"] == 50
    assert found["gpu_0_power_usage_watts"] == 650.5
    assert found["gpu_1_memory_usage_megabytes"] == 10
    assert "gpu_1_power_usage_watts" not in found


@pytest.mark.parametrize("text", ["exit 9", "echo 'No devices were found'"])
def test_a_driver_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program(tmp_path, text)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not [name for metrics in sample(tmp_path, 3) for name in metrics if "gpu" in name]

"""What a rank tells of the place where it runs; a sick GPU, played by a program that answers as nvidia-smi does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cluster.device import find_device
from pipeline.cluster.preflight import node
from pipeline.cluster.preflight.node import describe, host_name
from pipeline.cluster.ranks import ALONE

Smi = Callable[[str], Path]


def test_this_machine(tmp_path: Path) -> None:
    place = describe(ALONE, find_device(ALONE), tmp_path / "not" / "there" / "yet")
    assert (place.rank, place.local_rank, place.host) == (0, 0, host_name())
    assert place.devices >= 1
    assert place.device_memory > 1e8
    assert place.memory > 1e8
    assert {"headwater", "python", *node.PACKAGES} <= place.versions.keys()
    assert place.free_run is not None  # of the nearest folder above that there is
    assert place.free_tmp is not None
    assert place.speed == 0  # nothing was computed


def test_a_node_has_the_name_that_slurm_knows_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu007")
    assert host_name() == "gpu007"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert host_name() == socket.gethostname()


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PACKAGES", ("torch", "no-such-package"))
    assert node._versions(gpu=False).keys() == {"headwater", "python", "torch"}


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts a program of that name before all others; what it was asked stands in the file that comes back."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(node, "QUERY_SECONDS", 300.0)  # of a busy machine

    def write(does: str) -> Path:
        program, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
        program.write_text(f'#!/bin/sh\necho "$*" > {asked}\n{does}\n')
        program.chmod(0o755)
        return asked

    return write


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        ("0, No, Not Active", []),
        ("[N/A], [N/A], [N/A]", []),  # a GPU without such counters
        ("2, No, Not Active", ["GPU 3: uncorrected memory errors (2)"]),
        ("0, Yes, Not Active", ["GPU 3: memory pages waiting to be retired; reset the GPU"]),
        (
            "1, No, Active",
            ["GPU 3: uncorrected memory errors (1)", "GPU 3: slowed down by its hardware (heat or power)"],
        ),
        ("", []),
    ],
)
def test_health_counters_of_a_gpu(smi: Smi, answer: str, faults: list[str]) -> None:
    asked = smi(f"echo '{answer}'")
    assert node._gpu_faults(3) == faults
    assert asked.read_text().strip().endswith("-i 3")


def test_a_field_that_it_does_not_know_is_no_fault(smi: Smi) -> None:
    smi("echo 'Field is not a valid field to query.'; exit 2")
    assert node._gpu_faults(0) == []


def test_one_that_hangs_is_a_fault(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "QUERY_SECONDS", 0.1)
    smi("exec sleep 600")
    assert node._gpu_faults(1) == ["GPU 1: nvidia-smi hangs"]


def test_the_gpu_that_is_asked_is_the_one_that_the_rank_sees(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = smi("echo 0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    node._gpu_faults(1)
    assert asked.read_text().strip().endswith("-i GPU-abc")
    node._gpu_faults(2)  # beyond what is shown: by its number
    assert asked.read_text().strip().endswith("-i 2")


def test_no_such_program_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node._gpu_faults(0) == []

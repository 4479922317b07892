"""What a rank finds where it runs: host, device, memory, versions, free space, health."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
import torch

from pipeline import __version__
from pipeline.cluster.device import Device, gpu_count
from pipeline.cluster.ranks import Ranks

PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "safetensors")  # ranks exchange what these make
QUERY_SECONDS = 10.0  # nvidia-smi hangs on a sick GPU


@dataclass(frozen=True)
class Place:
    """One rank's surroundings. Memory and space in bytes; free_*: None where the folder cannot be asked.

    address: where the host's own name leads; devices: GPUs that the rank sees, or cores; faults: what the GPU's own
    health counters say; speed: FLOP/s of a matrix product, 0 where none was measured.
    """

    rank: int
    local_rank: int
    host: str
    address: str
    kind: str
    device: str
    devices: int
    device_memory: int
    memory: int
    versions: dict[str, str] = field(default_factory=dict)
    free_run: int | None = None
    free_tmp: int | None = None
    shm: int | None = None
    faults: list[str] = field(default_factory=list)
    speed: float = 0.0


def host_name() -> str:
    """This node's name as Slurm knows it, so that it can be excluded by it; elsewhere the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def describe(ranks: Ranks, device: Device, folder: Path) -> Place:
    """Look around, without computing anything. folder: the run directory."""
    gpu = device.kind == "cuda"
    memory = psutil.virtual_memory().total
    return Place(
        rank=ranks.rank,
        local_rank=ranks.local_rank,
        host=host_name(),
        address=_address(),
        kind=device.kind,
        device=device.name,
        devices=gpu_count() if gpu else device.threads,
        device_memory=torch.cuda.get_device_properties(device.index).total_memory if gpu else memory,
        memory=memory,
        versions=_versions(gpu),
        free_run=_space(folder, free=True),
        free_tmp=_space(Path(os.environ.get("TMPDIR") or "/tmp"), free=True),
        shm=_space(Path("/dev/shm"), free=False),
        faults=_gpu_faults(device.index) if gpu else [],
    )


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "unknown"


def _versions(gpu: bool) -> dict[str, str]:
    found = {"headwater": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if gpu:
        found["cuda"] = str(torch.version.cuda)
        if torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        with contextlib.suppress(subprocess.TimeoutExpired):  # told by _gpu_faults
            found["driver"] = next(iter(_query("driver_version", 0)), "unknown")
    return found


def _space(folder: Path, free: bool) -> int | None:
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if free else usage.total
    return None


def _query(fields: str, index: int) -> list[str]:
    """nvidia-smi's answer for one GPU; nothing where it is absent, or does not know a field.

    Raises: subprocess.TimeoutExpired when it hangs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = shown[index].strip() if index < len(shown) and shown[index].strip() else str(index)
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False)
    return [value.strip() for value in done.stdout.strip().split(",")] if done.returncode == 0 else []


def _gpu_faults(index: int) -> list[str]:
    """Memory errors and forced slow-downs that a GPU's own counters tell of."""
    wanted = {
        "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors",
        "retired_pages.pending": "memory pages waiting to be retired; reset the GPU",
        "clocks_throttle_reasons.hw_slowdown": "slowed down by its hardware (heat or power)",
    }
    try:
        answers = _query(",".join(wanted), index)
    except subprocess.TimeoutExpired:
        return [f"GPU {index}: nvidia-smi hangs"]
    return [
        f"GPU {index}: {words}" + (f" ({answer})" if answer.isdecimal() else "")
        for words, answer in zip(wanted.values(), answers, strict=False)
        if answer in ("Yes", "Active") or (answer.isdecimal() and int(answer) > 0)
    ]

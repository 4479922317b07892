"""What this rank computes on: an NVIDIA GPU or its share of the processor's cores, and how fast that can be."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cluster.ranks import Ranks, cores
from pipeline.errors import EnvironmentFault

PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns of the measured product
PEAK_SECONDS = 0.5


@dataclass(frozen=True)
class Device:
    """kind: `cuda` or `cpu`; index: which GPU; threads: cores this rank may use; bf16: is that the fast type."""

    kind: str
    index: int
    name: str
    threads: int
    bf16: bool

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")

    def describe(self) -> str:
        """One line for the person."""
        fast = "bf16" if self.bf16 else "fp32"
        where = f"GPU {self.index}" if self.kind == "cuda" else f"{self.threads} core{'s' * (self.threads > 1)} a rank"
        return f"{self.name}, {where}, {fast}"


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use; CUDA_VISIBLE_DEVICES="" gives 0."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_device(ranks: Ranks) -> Device:
    """The device of this rank; sets torch's threads on a CPU and the current GPU on a GPU machine.

    Raises: EnvironmentFault when there are more ranks than GPUs on this host.
    """
    if (gpus := gpu_count()) > 0:
        # A launcher that shows each rank its own GPU only (srun --gpus-per-task) leaves one, with index 0.
        if gpus != 1 and ranks.local_rank >= gpus:
            raise EnvironmentFault(
                f"{ranks.local_world_size} ranks on this host, but {gpus} GPUs; start one rank a GPU "
                '(ranks=… in the recipe, or the launcher\'s option), or CUDA_VISIBLE_DEVICES="" to use the CPU'
            )
        index = ranks.local_rank if gpus > 1 else 0
        torch.cuda.set_device(index)
        return Device(
            "cuda", index, torch.cuda.get_device_name(index), threads_of(ranks), torch.cuda.is_bf16_supported()
        )
    threads = threads_of(ranks)
    torch.set_num_threads(threads)
    return Device("cpu", 0, processor_name(), threads, processor_has_fast_bf16())


def threads_of(ranks: Ranks) -> int:
    """Threads of a rank: OMP_NUM_THREADS, else its share of the cores (all of them where srun has bound it)."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    bound = ranks.launcher == "srun" and cores() < (os.cpu_count() or 1)
    return max(1, cores() // (1 if bound else ranks.local_world_size))


def processor_name() -> str:
    """The processor in words."""
    return next((value for key, value in _cpuinfo() if key == "model name"), platform.processor() or platform.machine())


def processor_has_fast_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices faster than fp32: AMX, AVX-512 BF16, or Arm's BF16.

    Read from its flags, not measured: the same machine must always choose alike, or a resumed run would differ.
    """
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & set(processor_flags()))


def processor_flags() -> list[str]:
    """What the processor says it can do; empty where that is not known."""
    return next((value.split() for key, value in _cpuinfo() if key in ("flags", "Features")), [])


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # not Linux: nothing is known
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on this machine, if any."""
    return next(
        (found for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if (found := shutil.which(name))), None
    )


def matmul_peak(device: Device, dtype: torch.dtype) -> float:
    """Best speed of a large matrix product in `dtype` on this rank's device, in FLOP/s, measured in half a second.

    All ranks of a machine measure at the same time, so that shared cores count once. MFU is stated against it.
    """
    size = PEAK_SIZE[device.kind]
    place = device.torch_device
    a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    a @ b
    while best == float("inf") or time.perf_counter() - began < PEAK_SECONDS:  # once at least, on a busy machine too
        start = time.perf_counter()
        a @ b
        if device.kind == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

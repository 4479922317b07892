"""How fast the links are: an all-reduce over all ranks; between pairs of nodes where that is slow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.distributed as dist

from pipeline.cluster.device import Device
from pipeline.cluster.preflight.slow_links import Pair

MB = 1_000_000
SIZES = {"cpu": (1, 4, 16, 64), "cuda": (1, 16, 128, 1024)}  # MB, one after the other
SIZE_SECONDS = 0.5  # measured at each size, at least once
STOP_SECONDS = 1.0  # a size that took so long is the last
PAIR_SIZE = {"cpu": 8, "cuda": 256}  # MB
PAIR_TIMES = 2
PAIRS_SECONDS = 20.0  # after so long the rest of the pairs is not measured


def all_reduce_speeds(device: Device) -> list[tuple[int, float]]:
    """(bytes, bus bandwidth in GB/s) for growing sizes; every rank must call it, and gets the same numbers.

    Bus bandwidth as nccl-tests state it: bytes / seconds · 2 (n - 1) / n, comparable between numbers of ranks. Empty
    when there is one rank.
    """
    world = dist.get_world_size()
    if world == 1:
        return []
    found: list[tuple[int, float]] = []
    for size in SIZES[device.kind]:
        tensor = torch.zeros(size * MB // 4, device=device.torch_device)
        reduce = partial(dist.all_reduce, tensor)
        _worst(_seconds(reduce, device))  # the first makes connections and buffers
        seconds = _worst(_seconds(reduce, device))
        times = max(1, min(20, int(SIZE_SECONDS / seconds)))
        runs = [_worst(_seconds(reduce, device)) for _ in range(times)]
        seconds = statistics.median([seconds, *runs])
        found.append((size * MB, size * MB / seconds * 2 * (world - 1) / world / 1e9))
        if seconds > STOP_SECONDS:
            break
    return found


def pair_speeds(leaders: Mapping[str, int], device: Device) -> dict[Pair, float]:
    """GB/s between pairs of nodes, each pair both ways; only the nodes' first ranks need call it.

    leaders: host → its first rank, in the same order on all. Disjoint pairs are measured at the same time.
    Returns the pairs in which this rank took part as the lower one.
    """
    mine = dist.get_rank()
    hosts = list(leaders)
    tensor = torch.zeros(PAIR_SIZE[device.kind] * MB // 4, device=device.torch_device)
    small = torch.zeros(1, device=device.torch_device)
    found: dict[Pair, float] = {}
    for pairs in rounds(len(hosts)):
        for low, high in pairs:
            ends = leaders[hosts[low]], leaders[hosts[high]]
            if mine not in ends:
                continue
            _seconds(partial(_there_and_back, small, *ends), device)  # both are here
            times = [_seconds(partial(_there_and_back, tensor, *ends), device) for _ in range(PAIR_TIMES)]
            if mine == ends[0]:
                found[hosts[low], hosts[high]] = 2 * tensor.numel() * 4 / min(times) / 1e9
    return found


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of `count` nodes, in rounds of disjoint pairs (the circle method of tournaments)."""
    ring: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    for _ in range(len(ring) - 1):
        both = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in both if a is not None and b is not None]
        ring = [ring[0], ring[-1], *ring[1:-1]]


def _there_and_back(tensor: torch.Tensor, low: int, high: int) -> None:
    if dist.get_rank() == low:
        dist.send(tensor, high)
        dist.recv(tensor, high)
    else:
        dist.recv(tensor, low)
        dist.send(tensor, low)


def _seconds(act: Callable[[], object], device: Device) -> float:
    if device.kind == "cuda":
        torch.cuda.synchronize(device.torch_device)
    start = time.perf_counter()
    act()
    if device.kind == "cuda":
        torch.cuda.synchronize(device.torch_device)
    return max(time.perf_counter() - start, 1e-9)


def _worst(seconds: float) -> float:
    """The slowest rank's time, on all ranks, over the host's own links."""
    tensor = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)

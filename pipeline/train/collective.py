"""What all ranks say or decide together, on the host: small values over gloo, never waiting for a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import PipelineError
from pipeline.manifest import MANIFEST, Manifest, Work, load

T = TypeVar("T")


def alone() -> bool:
    """Whether there is nobody to talk to."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def reduce_sum(values: Sequence[float]) -> list[float]:
    """Element-wise sum over ranks, in fp64; every rank must call it, and gets the same numbers."""
    return _reduce(values, dist.ReduceOp.SUM)


def reduce_max(values: Sequence[float]) -> list[float]:
    """Element-wise maximum over ranks."""
    return _reduce(values, dist.ReduceOp.MAX)


def _reduce(values: Sequence[float], operation: Any) -> list[float]:
    tensor = torch.tensor(list(values), dtype=torch.float64)
    if not alone():
        dist.all_reduce(tensor, op=operation)
    return [float(value) for value in tensor]


def gather(value: T) -> list[T]:
    """Every rank's value (anything that pickles), in the order of ranks."""
    if alone():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if alone():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    answer: T = box[0]
    return answer


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if not alone():
        dist.all_reduce(torch.zeros(1))


def manifest_of_rank_0(work: Work, patience: float = 3600.0) -> Manifest:
    """What a rank other than 0 returns from a stage: the manifest that rank 0 commits when all is written.

    Waits by looking, not by a collective: rank 0 may copy files for longer than a network waits.
    Raises: PipelineError when it does not appear within `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if (work.folder / MANIFEST).is_file():
            made = load(work.folder)
            if made.key == work.key:
                return made
        time.sleep(0.1)
    raise PipelineError(f"{work.stage}: rank 0 has not finished {work.folder} within {patience:.0f} s")

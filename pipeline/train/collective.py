"""What all ranks say or decide together, on the host: small values over gloo, never waiting for a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import PipelineError
from pipeline.manifest import MANIFEST, Manifest, Work, load

T = TypeVar("T")


@dataclass
class _Last:
    """The collective of this file that was entered last: its name, and when (monotonic seconds)."""

    name: str = "none"
    time: float = 0.0


_last = _Last()


def last_entered() -> tuple[str, float]:
    """Name of the collective of this file that this rank entered last, and how many seconds ago."""
    return _last.name, time.monotonic() - _last.time if _last.time else 0.0


def entered() -> int:
    """How many collectives this rank has entered since it met the others, DeepSpeed's and ours, over all groups.

    Torch counts them itself for each group. Ranks that do the same work have the same count; one that is behind has
    not come to where the others wait. Any thread may ask.
    """
    if not dist.is_initialized():
        return 0
    found = 0
    for group in list(dist.distributed_c10d._world.pg_map):  # no public function lists them
        for kind in {device.type for device in group._device_types}:
            backend: Any = group._get_backend(torch.device(kind))
            with contextlib.suppress(RuntimeError):  # a backend that does not count
                found += int(backend._get_sequence_number_for_group())
    return found


def _enter(name: str) -> None:
    _last.name, _last.time = name, time.monotonic()


def alone() -> bool:
    """Whether there is nobody to talk to."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def reduce_sum(values: Sequence[float]) -> list[float]:
    """Element-wise sum over ranks, in fp64; every rank must call it, and gets the same numbers."""
    _enter("reduce_sum")
    return _reduce(values, dist.ReduceOp.SUM)


def reduce_max(values: Sequence[float]) -> list[float]:
    """Element-wise maximum over ranks."""
    _enter("reduce_max")
    return _reduce(values, dist.ReduceOp.MAX)


def by_rank(value: float) -> list[float]:
    """Every rank's number, in the order of ranks: one small all-reduce."""
    _enter("by_rank")
    values = [0.0] * (1 if alone() else dist.get_world_size())
    values[0 if alone() else dist.get_rank()] = value
    return _reduce(values, dist.ReduceOp.SUM)


def _reduce(values: Sequence[float], operation: Any) -> list[float]:
    tensor = torch.tensor(list(values), dtype=torch.float64)
    if not alone():
        dist.all_reduce(tensor, op=operation)
    return [float(value) for value in tensor]


def gather(value: T) -> list[T]:
    """Every rank's value (anything that pickles), in the order of ranks."""
    _enter("gather")
    if alone():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    _enter("broadcast")
    if alone():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    answer: T = box[0]
    return answer


def wait_for_all() -> None:
    """Return when every rank has come here."""
    _enter("wait_for_all")
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

"""What all ranks say or decide together, on the host: small values over gloo, never waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

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

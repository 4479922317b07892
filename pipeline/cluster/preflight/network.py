"""The collectives of preflight, in a thread of their own: one over a sick link does not come back."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.cluster.device import Device
from pipeline.cluster.preflight.bandwidth import all_reduce_speeds, pair_speeds
from pipeline.cluster.preflight.rendezvous import meet_again
from pipeline.cluster.preflight.slow_links import Pair
from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault


class Network(threading.Thread):
    """The collectives. outcome: {"all_reduce", "pairs"} or {"error"}."""

    def __init__(self, ranks: Ranks, device: Device, leaders: Mapping[str, int], floor: float, patience: float) -> None:
        super().__init__(daemon=True)
        self.ranks, self.device, self.leaders, self.floor, self.patience = ranks, device, leaders, floor, patience
        self.outcome: dict[str, Any] = {}

    def run(self) -> None:
        try:
            self.outcome = self._measured()
        except (RuntimeError, ValueError, EnvironmentFault) as error:
            self.outcome = {"error": str(error).splitlines()[0][:300]}

    def _measured(self) -> dict[str, Any]:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # a hang is ours to report, not an abort's
        if self.device.kind == "cuda":
            torch.cuda.set_device(self.device.index)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.kind == "cuda" else "gloo",
            store=meet_again(self.ranks, self.patience).store,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            timeout=timedelta(seconds=self.patience),
        )
        try:
            total = all_reduce_speeds(self.device)
            pairs: dict[Pair, float] = {}
            slow = bool(total) and max(speed for _, speed in total) < self.floor  # the same on all ranks
            if slow and len(self.leaders) > 1 and self.ranks.rank in self.leaders.values():
                pairs = pair_speeds(self.leaders, self.device)
            dist.all_reduce(torch.zeros(1))  # nobody leaves while others are still at work
        finally:
            dist.destroy_process_group()
        return {"all_reduce": total, "pairs": [[list(pair), speed] for pair, speed in pairs.items()]}

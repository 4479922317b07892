"""Between log intervals nothing of ours waits for the device: no number is brought to the host."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import GLOBAL_BATCH, TinyTask, settings
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.train import engine as deepspeed_engine
from pipeline.train.steps import Steps

# Where DeepSpeed 0.19.8 reads the device in ZeRO-1 and ZeRO-2's step, one after the other when the backward pass is
# over, so that the first one waits and the others find it done: to skip a step that is not finite is decided on the
# host. A GPU stands still for the microseconds until its next kernel comes.
DEEPSPEED = {"has_overflow", "is_invalid_grad_norm"}
ROOMS = ("/pipeline/", "/deepspeed/")


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that are read by the host (item, tolist, bool, float), by the function that asked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            asked = next(
                frame for frame in reversed(traceback.extract_stack()) if any(r in frame.filename for r in ROOMS)
            )
            self.found[f"{Path(asked.filename).name}:{asked.name}"] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("zero", ["zero1", "zero2"])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_step_reads_nothing_back(zero: str, clip: float) -> None:
    chosen, device, task = settings(deepspeed=zero, gradient_clip=clip), find_device(ALONE), TinyTask()
    with deepspeed_engine.process_group(ALONE, device):
        plan = deepspeed_engine.Plan(1, GLOBAL_BATCH // 2, 2, torch.float32, compile=False)
        engine = deepspeed_engine.start(task.model, chosen, device, plan)
        steps = Steps(task, engine, chosen, ALONE, device.torch_device, GLOBAL_BATCH // 2, 2)
        steps.begin(0)
        steps.do(0)
        with Reads() as reads:
            steps.do(1)
            inside = dict(reads.found)
            steps.losses()
        steps.close()
        engine.destroy()
    assert {where.split(":")[1] for where in inside} <= DEEPSPEED, inside
    assert sum(inside.values()) <= 4, inside
    assert sum(reads.found.values()) > sum(inside.values()), "losses() is where the host waits, and is seen to"

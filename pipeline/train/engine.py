"""DeepSpeed, behind one door: the only file that imports it.

A recipe says what is learnt (batch, optimizer, clipping, precision); a file in ds_configs/ says how memory and
communication are arranged. Neither may say what the other says: deepspeed_files.py refuses it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from pipeline.cluster.device import Device, compiler
from pipeline.cluster.ranks import Ranks
from pipeline.config import find_deepspeed_config
from pipeline.errors import EnvironmentFault, RecipeError
from pipeline.model.recompute import keep_activations
from pipeline.model.transformer import Transformer
from pipeline.recipe import OptimizerSettings, TrainingBase
from pipeline.train.compilation import COMPILER, CPU_FLOPS
from pipeline.train.deepspeed_files import check_machine, read_config, refusal
from pipeline.train.parameters import parameter_groups

TIMEOUT = timedelta(minutes=30)  # a rank that waits longer than this for the others gives up
MEETING = timedelta(minutes=10)  # … and at the start, where no watchdog is at work yet
# Elements that travel together, where the file leaves it open: enough to fill a GPU's network; between processes of one
# machine less is faster, and takes less memory (tools/bench/README.md, `zero`).
BUCKET = {"cuda": 50_000_000, "cpu": 10_000_000}
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
BUCKETS_OF_STAGE = {0: (), 1: BUCKETS, 2: BUCKETS, 3: ("reduce_bucket_size", "stage3_prefetch_bucket_size")}


@dataclass(frozen=True)
class Plan:
    """What the loop has worked out before the engine starts. dtype: of weights and products in the forward pass."""

    world_size: int
    micro_batch: int
    accumulation: int
    dtype: torch.dtype
    compile: bool


def precision(settings: TrainingBase, device: Device) -> torch.dtype:
    """The type in which the model computes.

    Raises: RecipeError for fp16 on a device without it.
    """
    if settings.precision == "auto":
        return torch.bfloat16 if device.bf16 else torch.float32
    if settings.precision == "fp16" and device.kind != "cuda":
        raise RecipeError("precision: fp16 needs a GPU; use bf16, fp32 or auto on this machine")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[settings.precision]


def compiles(settings: TrainingBase, device: Device, model: nn.Module, operations: float) -> bool:
    """Whether the model goes through torch.compile. operations: of the whole training, on one rank.

    Raises: RecipeError when the recipe asks for it and there is no C++ compiler.
    """
    if settings.compile == "yes" and compiler() is None:
        raise RecipeError("compile=yes needs a C++ compiler (g++ or clang++), and none is here; use compile=auto")
    pays = device.kind == "cuda" or (isinstance(model, Transformer) and operations > CPU_FLOPS)
    return settings.compile == "yes" or (settings.compile == "auto" and pays and compiler() is not None)


def configuration(settings: TrainingBase, plan: Plan, device_kind: str) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the JSON file, what the recipe says, what the device likes."""
    values = read_config(settings.deepspeed)
    stage = values.setdefault("zero_optimization", {"stage": 0}).get("stage", 0)
    for key in BUCKETS_OF_STAGE[stage]:
        values["zero_optimization"].setdefault(key, BUCKET[device_kind])
    if stage == 3 and settings.optimizer.name == "muon":
        values["zero_optimization"].setdefault("reduce_scatter", False)  # Muon wants whole gradients
    low = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(plan.dtype)
    values |= {
        "train_batch_size": plan.micro_batch * plan.accumulation * plan.world_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # DeepSpeed would clip Muon's finished updates together with AdamW's gradients.
        "gradient_clipping": settings.gradient_clip if settings.optimizer.name == "adamw" else 0.0,
        "steps_per_print": 10**12,  # our own loop reports
        "zero_allow_untested_optimizer": True,  # Muon, in DeepSpeed's own implementation
        "zero_force_ds_cpu_optimizer": False,  # its CPU Adam needs a compiler; torch's fused AdamW does not
    }
    if low and stage == 0:  # without ZeRO there are no fp32 master weights beside low-precision ones
        values["torch_autocast"] = {"enabled": True, "dtype": low}
    elif low:
        values["bf16" if low == "bfloat16" else "fp16"] = {"enabled": True}
        if stage >= 2 and plan.accumulation > 1 and low == "bfloat16":
            # bf16 would lose small shares of a long sum. With stage 1 this selects DeepSpeed's BF16_Optimizer, which
            # holds an fp32 gradient of every weight on every rank.
            values.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    return values


def optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that a recipe asks for; AdamW is torch's fused one, which needs no compiler."""
    groups = parameter_groups(model, settings)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    found: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True}
    )
    return found


@contextlib.contextmanager
def process_group(ranks: Ranks, device: Device) -> Iterator[None]:
    """Connect all ranks, and part from them in the end: leaving without it sometimes aborts the process.

    Raises: EnvironmentFault when the others do not come.
    """
    deepspeed = _import(device)
    from deepspeed.utils import groups

    # On GPUs decisions are exchanged on the host (gloo), without waiting for the device (nccl).
    backend = "cpu:gloo,cuda:nccl" if device.kind == "cuda" else "gloo"
    with _environment(ranks):
        try:
            if ranks.port is None:  # alone: nobody to meet
                store = torch.distributed.HashStore()  # type: ignore[attr-defined]
                torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
            else:
                meeting = torch.distributed.rendezvous("env://", timeout=MEETING)  # type: ignore[attr-defined]
                store, rank, world_size = next(meeting)
                store.set_timeout(TIMEOUT)
                torch.distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
                )
        except (RuntimeError, ValueError) as error:
            raise EnvironmentFault(
                f"rank {ranks.rank} of {ranks.world_size} could not meet the others at {ranks.address}:{ranks.port}: "
                f"{str(error).splitlines()[0]}; `pipeline preflight` under the same launcher says who is missing"
            ) from error
        try:
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=TIMEOUT)
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # another rank has died: there is nobody to part from
                deepspeed.comm.destroy_process_group()
            groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of ZeRO++; the next training makes its own


@contextlib.contextmanager
def _environment(ranks: Ranks) -> Iterator[None]:
    """The variables that torch and DeepSpeed read, as torchrun sets them; afterwards as they were."""
    wanted = {
        "RANK": ranks.rank,
        "WORLD_SIZE": ranks.world_size,
        "LOCAL_RANK": ranks.local_rank,
        "LOCAL_WORLD_SIZE": ranks.local_world_size,
        "MASTER_ADDR": ranks.address,
        "MASTER_PORT": ranks.port or 0,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= {name: str(value) for name, value in wanted.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start(model: nn.Module, settings: TrainingBase, device: Device, plan: Plan) -> Any:
    """A DeepSpeed engine over `model`, which is moved to the device and turned to plan.dtype.

    Returns deepspeed.DeepSpeedEngine. Raises: RecipeError when the configuration cannot be had here, or DeepSpeed
    refuses it.
    """
    check_machine(settings.deepspeed, device, plan.world_size)
    deepspeed = _import(device)
    COMPILER.optimizer = False
    keep_activations(model, settings.activation_checkpointing)
    model.to(device.torch_device)
    values = configuration(settings, plan, device.kind)
    if values["zero_optimization"]["stage"] == 3 and isinstance(model, Transformer):
        # A block's weights are fetched together, by one hook in place of one for each layer in it: fewer to run, and
        # none where a compiler or a second forward pass would meet it.
        for block in model.blocks:
            deepspeed.utils.set_z3_leaf_module(block, True)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer(model, settings.optimizer), config=values)
    except (AssertionError, ValueError, deepspeed.DeepSpeedConfigError) as error:
        path = find_deepspeed_config(settings.deepspeed)
        raise RecipeError(f"{path}: DeepSpeed refuses it: {refusal(error)}") from error
    if plan.compile:
        deepspeed.utils.nvtx.enable_nvtx = False  # marks for a profiler, at which a compiler would stop
        COMPILER.compile(model, device, settings.compile_cache)
    return engine


def release() -> None:
    """Free what the last engine held, before another training starts in this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _quiet() -> None:
    for module in ("deepspeed", "torch.distributed"):  # it calls names that torch has given new ones
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def _import(device: Device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.kind)  # otherwise it looks for one, with a warning
    # Its tuner of configurations, which only its launcher uses, imports mlflow: two seconds of every rank's start.
    unused = types.ModuleType("deepspeed.autotuning.autotuner")
    unused.Autotuner = None  # type: ignore[attr-defined]
    sys.modules.setdefault(unused.__name__, unused)
    import deepspeed

    _quiet()
    deepspeed.runtime.compiler.compile = COMPILER.late
    # It would try which operators a compiler can build here, build a shared-memory all-reduce with it at every start,
    # and die where there is none. We use no such operator.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed

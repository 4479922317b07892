"""DeepSpeed, behind one door: the only file that imports it.

A recipe says what is learnt (batch, optimizer, clipping, precision); a file in ds_configs/ says how memory and
communication are arranged. Neither may say what the other says: `configuration` refuses it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cluster.device import Device, compiler
from pipeline.cluster.ranks import Ranks
from pipeline.config import find_deepspeed_config
from pipeline.errors import EnvironmentFault, RecipeError
from pipeline.recipe import OptimizerSettings, TrainingBase
from pipeline.train.parameters import parameter_groups

TIMEOUT = timedelta(minutes=30)  # a rank that waits longer than this for the others gives up
STATE = "state"  # DeepSpeed's folder inside a checkpoint

# Keys of DeepSpeed's JSON whose values come from the recipe, and where they are set there.
FROM_RECIPE = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "global_batch and micro_batch",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "gradient_clipping": "gradient_clip",
    "bf16": "precision",
    "fp16": "precision",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "steps_per_print": "log_interval",
}


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


def compiles(settings: TrainingBase, device: Device) -> bool:
    """Whether the model goes through torch.compile.

    Raises: RecipeError when the recipe asks for it and there is no C++ compiler.
    """
    if settings.compile == "yes" and compiler() is None:
        raise RecipeError("compile=yes needs a C++ compiler (g++ or clang++), and none is here; use compile=auto")
    return settings.compile == "yes" or (
        settings.compile == "auto" and device.kind == "cuda" and compiler() is not None
    )


def zero_stage(name: str) -> int:
    """The ZeRO stage of a DeepSpeed JSON file, by the name that `deepspeed:` gives it."""
    return int(read_config(name).get("zero_optimization", {}).get("stage", 0))


def read_config(name: str) -> dict[str, Any]:
    """A DeepSpeed JSON file, checked.

    Raises: RecipeError when it is not JSON, or holds a key that the recipe sets.
    """
    path = find_deepspeed_config(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: must hold a JSON object, as DeepSpeed's documentation shows")
    for key in values:
        if key in FROM_RECIPE:
            raise RecipeError(f"{path}: '{key}' is set by the recipe ({FROM_RECIPE[key]}); take it out of this file")
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise RecipeError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    return values


def configuration(settings: TrainingBase, plan: Plan) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the JSON file and what the recipe says."""
    values = read_config(settings.deepspeed)
    stage = values.setdefault("zero_optimization", {"stage": 0}).get("stage", 0)
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
            # bf16 would lose small shares of a long sum. With stage 1 this selects DeepSpeed's BF16_Optimizer, whose
            # checkpoints its own zero_to_fp32 cannot read.
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

    Raises: EnvironmentFault when the others do not come, or DeepSpeed is a version that computes wrong gradients.
    """
    deepspeed = _import(device)
    # On GPUs decisions are exchanged on the host (gloo), without waiting for the device (nccl).
    backend = "cpu:gloo,cuda:nccl" if device.kind == "cuda" else "gloo"
    with _environment(ranks):
        try:
            if ranks.port is None:  # alone: nobody to meet
                store = torch.distributed.HashStore()  # type: ignore[attr-defined]
                torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
            else:
                torch.distributed.init_process_group(backend, init_method="env://", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise EnvironmentFault(
                f"rank {ranks.rank} of {ranks.world_size} could not meet the others at {ranks.address}:{ranks.port}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        try:
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=TIMEOUT)
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # another rank has died: there is nobody to part from
                deepspeed.comm.destroy_process_group()


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

    Returns deepspeed.DeepSpeedEngine. Raises: RecipeError when DeepSpeed refuses the configuration.
    """
    if not plan.compile:
        # DeepSpeed compiles Muon's iteration at its first step: without a compiler it would die there.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    deepspeed = _import(device)
    model.to(device.torch_device)
    values = configuration(settings, plan)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer(model, settings.optimizer), config=values)
    except (AssertionError, ValueError, deepspeed.DeepSpeedConfigError) as error:
        path = find_deepspeed_config(settings.deepspeed)
        raise RecipeError(f"{path}: DeepSpeed refuses it: {' '.join(str(error).split())}") from error
    if plan.compile:
        engine.compile()
    return engine


def fp32_weights(checkpoint: Path, stage: int) -> dict[str, Tensor]:
    """The fp32 weights in a checkpoint folder, by parameter name, on the CPU: the ranks' shares put together."""
    _quiet()
    from deepspeed.utils import zero_to_fp32

    if stage == 0:
        states = torch.load(checkpoint / STATE / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        weights: dict[str, Tensor] = states["module"]
        return weights
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        found: dict[str, Tensor] = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=STATE)
    return found


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
    import deepspeed

    _quiet()
    version = tuple(int(part) for part in deepspeed.__version__.split("+")[0].split(".")[:3])
    if (0, 17, 6) <= version <= (0, 18, 2):
        raise EnvironmentFault(
            f"deepspeed {deepspeed.__version__} computes wrong ZeRO-2 gradients (its issue 7718); "
            "install 0.19.8 or newer"
        )
    # It would try which operators a compiler can build here, build a shared-memory all-reduce with it at every start,
    # and die where there is none. We use no such operator.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed

"""DeepSpeed's JSON files (ds_configs/, or a user's own), read and checked before anything starts.

DeepSpeed passes over a section that it does not know, and over keys of another ZeRO stage, without a word: a typing
error would cost memory or speed, and nobody would hear of it. What follows was read in DeepSpeed 0.19.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import find_deepspeed_config
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.cluster.device import Device  # imports torch; `pipeline run` reads files long before it trains

# Keys whose values come from the recipe, and where they are set there.
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
    "compile": "compile",
    "steps_per_print": "log_interval",
}
# Sections and keys that may stand in a file: they arrange memory and communication, or tell of them.
ALLOWED = (
    "zero_optimization",
    "data_types",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "disable_python_gc",
    "log_level",
)
ONLY_STAGE_3 = ("stage3_", "offload_param", "zero_hpz_", "zero_quantized_")
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def zero_stage(name: str) -> int:
    """The ZeRO stage of a file, by the name that `deepspeed:` gives it."""
    return int(read_config(name).get("zero_optimization", {}).get("stage", 0))


def read_config(name: str) -> dict[str, Any]:
    """A file, checked.

    Raises: RecipeError when it is not JSON, or holds a key that the recipe sets, that has no effect, or that Headwater
    cannot train with.
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
        if key not in ALLOWED:
            raise RecipeError(f"{path}: '{key}' has no place here; what may stand in the file is {', '.join(ALLOWED)}")
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise RecipeError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    _check_zero(path, zero)
    return values


def _check_zero(path: Path, zero: dict[str, Any]) -> None:
    """Raises: RecipeError."""
    for key, value in zero.items():
        if key.startswith(ONLY_STAGE_3) and zero.get("stage") != 3:
            raise RecipeError(f"{path}: zero_optimization.{key} has no effect without stage 3; take it out")
        if key.startswith("offload_") and isinstance(value, dict) and value.get("device") == "nvme":
            raise RecipeError(
                f"{path}: zero_optimization.{key}.device: nvme needs an operator that DeepSpeed compiles at the first "
                "start, and what lies on NVMe is in no checkpoint here; use cpu"
            )


def check_machine(name: str, device: Device, world_size: int) -> None:
    """Can a file be trained with on such a device, on so many ranks?

    Raises: RecipeError naming the file, the key and what it needs.
    """
    path, zero = find_deepspeed_config(name), read_config(name).get("zero_optimization", {})
    quantized = [key for key in QUANTIZED if zero.get(key)]
    if quantized and (device.kind != "cuda" or not _has_cuda_toolkit()):
        raise RecipeError(
            f"{path}: {quantized[0]} needs NVIDIA GPUs and the CUDA toolkit (nvcc), with which DeepSpeed builds its "
            "quantizer at the first start; use zero3_hpz or zero3 here"
        )
    share = int(zero.get("zero_hpz_partition_size", 1))
    if share > 1 and world_size % min(share, world_size):
        raise RecipeError(
            f"{path}: zero_hpz_partition_size = {share} does not divide {world_size} ranks; copy the file, set it to "
            "the number of GPUs of a node, and give its path as deepspeed=…"
        )


def _has_cuda_toolkit() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME  # where DeepSpeed looks for it

    return CUDA_HOME is not None


def refusal(error: Exception) -> str:
    """One line of what DeepSpeed, or pydantic in it, says of a configuration."""
    details = getattr(error, "errors", None)
    if not callable(details):
        return " ".join(str(error).split())
    return "; ".join(f"zero_optimization.{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details())

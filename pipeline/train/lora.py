"""LoRA (Hu et al. 2021): small matrices beside the frozen layers of a base, by `peft`.

Every linear layer of the base's body gets a pair of them; a new head (of a classifier) is learnt whole. What is trained
is the base's own module with the adapters in it, so that loop, checkpoints and resume are those of full fine-tuning;
checkpoints hold what is learnt alone, and every start takes the frozen weights from the base.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, commit_folder, disk_errors
from pipeline.recipe import FinetuneTask, LoraSettings

HEADS = ("classifier", "score", "pre_classifier", "pooler", "classification_head")  # new with the task
TOLERANCE = 1e-4  # of a merged model's logits, as a share of the largest


def adapt(model: Any, settings: LoraSettings, task: FinetuneTask, seed: int) -> Any:
    """A `peft.PeftModel` around `model` (transformers PreTrainedModel), whose layers are changed in place and frozen.

    New matrices are drawn from `seed`, the same on every rank. Raises: DataError when there is no layer to adapt.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    kind = TaskType.CAUSAL_LM
    if task.task == "classify":
        kind = TaskType.SEQ_CLS
    elif model.config.is_encoder_decoder:
        kind = TaskType.SEQ_2_SEQ_LM
    heads = [name for name in HEADS if any(name in path.split(".") for path, _ in model.named_modules())]
    if task.task != "classify":
        heads = []
    last = model.get_output_embeddings()
    layers = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not last and not set(path.split(".")) & set(heads)
    ]
    if not layers:
        raise DataError(f"{model.name_or_path}: has no linear layer that lora could adapt; take lora out of the task")
    config = LoraConfig(
        task_type=kind,
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.dropout,
        target_modules=layers,
        modules_to_save=heads or None,
        inference_mode=False,
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    adapted.train(task.dropout)
    return adapted


def trainable(model: nn.Module) -> tuple[int, int]:
    """Weights that are learnt, and all."""
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(count for count, learnt in counts if learnt), sum(count for count, _ in counts)


def save_adapter(folder: Path, adapted: Any) -> list[Path]:
    """Write the adapters alone, as `peft.PeftModel.from_pretrained(base, folder)` reads them. Returns the files."""
    temporary = folder.with_name(folder.name + TEMPORARY)
    with disk_errors(folder):
        for old in (temporary, folder):
            shutil.rmtree(old, ignore_errors=True)
        adapted.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # an empty model card
        return commit_folder(temporary, folder)


@torch.no_grad()
def merge(adapted: Any, inputs: dict[str, Tensor]) -> tuple[Any, float]:
    """The base with the adapters added to its weights: (a plain PreTrainedModel, largest difference of a logit on
    `inputs` as a share of the largest logit).

    Raises: PipelineError when its logits are not those of adapters and base.
    """
    adapted.eval()
    apart = adapted(**inputs).logits
    merged = adapted.merge_and_unload()
    difference = float((merged(**inputs).logits - apart).abs().max() / apart.abs().max())
    if not difference <= TOLERANCE:  # a NaN must not pass
        raise PipelineError(f"lora: merged into the base, the logits differ by {difference:.2g} of the largest")
    return merged, difference

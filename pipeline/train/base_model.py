"""The model that a fine-tuning starts from, and the directory that it leaves: Hugging Face on both sides.

The base is any local model directory with safetensors and a tokenizer; `pipeline.model.directory` opens it and refuses
what cannot be used. No code from the directory is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, disk_errors, sync_directory, sync_file
from pipeline.model.directory import check_model_directory, load_model, load_tokenizer
from pipeline.recipe import FinetuneTask

AUTO = {"sft": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification"}

# For base models without a chat template: the question, a line break, the answer, the end of text.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)


def open_tokenizer(folder: Path, task: FinetuneTask, name: str) -> Any:
    """The base's tokenizer, fit for the task: with a padding token, and for sft with a chat template.

    Raises: DataError when the directory or its tokenizer cannot be used, or seq_len is longer than the model reads.
    """
    config = check_model_directory(folder)
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise DataError(f"{folder}: its tokenizer has no tokenizer.json; convert it with transformers' save_pretrained")
    if tokenizer.pad_token_id is None:
        raise DataError(f"{folder}: its tokenizer has neither a padding nor an end-of-text token; set pad_token in it")
    words = config.get("vocab_size")
    if isinstance(words, int) and max(tokenizer.get_vocab().values()) >= words:
        raise DataError(
            f"{folder}: its tokenizer has {len(tokenizer):,} words, but its model only {words:,}; "
            "they do not belong together"
        )
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and task.seq_len > positions:
        raise DataError(
            f"finetune.{name}.seq_len ({task.seq_len}) is longer than the {positions} positions of {folder}; lower it"
        )
    if task.task == "sft":
        kind = next(iter(config.get("architectures") or []), "")
        if kind.startswith(("Bert", "Roberta", "Electra", "Deberta", "XLMRoberta")) and not config.get("is_decoder"):
            raise DataError(f"{folder}: {kind} reads text in both directions and writes none; sft needs a causal model")
        if not tokenizer.chat_template:
            if tokenizer.eos_token is None:
                raise DataError(f"{folder}: its tokenizer has no end-of-text token, so no answer could end")
            tokenizer.chat_template = PLAIN_TEMPLATE
    else:
        tokenizer.model_max_length = task.seq_len  # truncation=True then cuts as in training
    return tokenizer


def load_base(folder: Path, task: FinetuneTask, labels: Sequence[str], tokenizer: Any, seed: int) -> Any:
    """The base in fp32 on the CPU, with a new layer of scores for `labels` where the task is classify.

    Returns a transformers PreTrainedModel, the same on every rank: new weights are drawn from `seed`.
    """
    options: dict[str, Any] = {}
    if task.task == "classify":
        options = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "single_label_classification",
            "pad_token_id": tokenizer.pad_token_id,
            "ignore_mismatched_sizes": True,  # the base may be a classifier of other labels
        }
    torch.manual_seed(seed)
    model = load_model(folder, AUTO[task.task], **options)
    keep_rotary_frequencies(model)
    return model


def keep_rotary_frequencies(model: nn.Module) -> None:
    """Let the model turn to another type, but not its rotary frequencies, which `transformers` always keeps in fp32.

    DeepSpeed turns a whole module to bf16, buffers included. Frequencies rounded to 8 bits turn positions by up to a
    radian at position 256, and the model that is trained would not be the one that is loaded in the end.
    """
    for module in model.modules():
        names = [name for name in module._buffers if name.endswith("inv_freq")]
        if names:
            module._apply = _apply_except(module, names)  # type: ignore[method-assign]


def _apply_except(module: nn.Module, names: Sequence[str]) -> Callable[..., nn.Module]:
    """`module._apply`, after which the named buffers have moved to the device, but kept their type."""
    apply: Callable[..., nn.Module] = type(module)._apply

    def changed(function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = {name: module._buffers[name] for name in names}
        apply(module, function, recurse)
        for name, buffer in before.items():
            now = module._buffers[name]
            if buffer is not None and now is not None:
                module._buffers[name] = buffer.to(now.device)
        return module

    return changed


def training_flops(model: nn.Module, tokens: float, head_tokens: float) -> float:
    """Operations of a training step: 6 for each weight of the body and token, 6 for each weight of the output layer
    and token with a target. Attention scores are left out; embeddings are looked up."""
    model_any: Any = model
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model_any.get_output_embeddings()
    head_weights = 0 if head is None else sum(weight.numel() for weight in head.parameters())
    ours = set() if head is None else {id(weight) for weight in head.parameters()}
    body = sum(weight.numel() for weight in model.parameters() if id(weight) not in tables | ours)
    return 6.0 * (body * tokens + head_weights * head_tokens)


def save_model(
    folder: Path, model: Any, weights: dict[str, Tensor], tokenizer: Any, end: int | None, inputs: dict[str, Tensor]
) -> list[Path]:
    """Write `folder`: the model with the trained weights in its base's type, its tokenizer, its generation settings.

    It is written under a temporary name, loaded again and must give the same logits on `inputs`; only then renamed.
    end: token that ends an answer. Returns the files. Raises: PipelineError when the logits differ.
    """
    dtype = getattr(torch, str(model.config.dtype or "float32").removeprefix("torch."))
    model.load_state_dict({name: weight.to(dtype).float() for name, weight in weights.items()})
    model.eval()
    if end is not None and model.generation_config is not None:
        known = model.generation_config.eos_token_id
        ends = known if isinstance(known, list) else [] if known is None else [known]
        model.generation_config.eos_token_id = list(dict.fromkeys([*ends, end]))
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    temporary = folder.with_name(folder.name + TEMPORARY)
    with disk_errors(folder), torch.no_grad():
        trained = model(**inputs).logits
        for old in (temporary, folder):
            shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.to(dtype).save_pretrained(temporary, max_shard_size="5GB")
        tokenizer.save_pretrained(temporary)
        again = load_model(temporary, type(model).__name__)
        difference = float((again(**inputs).logits - trained).abs().max())
        if not difference <= 1e-5 * float(trained.abs().max()):
            raise PipelineError(f"{temporary}: read back, its logits differ from the trained model's by {difference}")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in files:
            sync_file(path)
        sync_directory(temporary)
        temporary.rename(folder)
        sync_directory(folder.parent)
    return [folder / path.relative_to(temporary) for path in files]

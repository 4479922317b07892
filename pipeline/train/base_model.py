"""The model that a fine-tuning starts from, and the directory that it leaves: Hugging Face on both sides.

The base is any model directory with safetensors and a tokenizer: causal, an encoder, or an encoder–decoder.
`pipeline.model.directory` opens it and refuses what cannot be used. No code from it is run unless the recipe says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, commit_folder, disk_errors
from pipeline.model.directory import check_model_directory, load_model, load_tokenizer
from pipeline.recipe import FinetuneTask

PROBLEMS = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
BOTH_WAYS = ("Bert", "Roberta", "Electra", "Deberta", "XLMRoberta", "DistilBert", "Albert", "MPNet", "ModernBert")

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
    tokenizer = load_tokenizer(folder, task.trust_remote_code)
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
    if isinstance(positions, int) and "roberta" in config["model_type"]:
        positions -= config.get("pad_token_id", 1) + 1  # its first position is the one after padding's
    if isinstance(positions, int) and task.seq_len > positions:
        raise DataError(
            f"finetune.{name}.seq_len ({task.seq_len}) is longer than the {positions} positions of {folder}; lower it"
        )
    _refuse_kind(folder, config, task)
    two_parts = bool(config.get("is_encoder_decoder"))
    if task.task == "classify":
        tokenizer.model_max_length = task.seq_len  # truncation=True then cuts as in training
        return tokenizer
    if tokenizer.eos_token is None:
        raise DataError(f"{folder}: its tokenizer has no end-of-text token, so no answer could end")
    if two_parts:
        if config.get("decoder_start_token_id") is None:
            raise DataError(f"{folder}/config.json: decoder_start_token_id is not set; copy it from the model's origin")
        tokenizer.model_max_length = task.seq_len
    elif not tokenizer.chat_template and task.task != "continue":
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _refuse_kind(folder: Path, config: dict[str, Any], task: FinetuneTask) -> None:
    """Raises: DataError where models of this kind cannot do the task."""
    two_parts = bool(config.get("is_encoder_decoder"))
    kind = next(iter(config.get("architectures") or []), "")
    if two_parts and task.task == "classify":
        raise DataError(
            f"{folder}: {kind or 'it'} is an encoder–decoder; classify needs an encoder or a causal model, "
            "or use task: seq2seq with the labels as targets"
        )
    if two_parts and task.task != "seq2seq":
        raise DataError(f"{folder}: {kind or 'it'} is an encoder–decoder; use task: seq2seq, not {task.task}")
    both_ways = kind.startswith(BOTH_WAYS) and not config.get("is_decoder") and not two_parts
    if both_ways and task.task != "classify":
        raise DataError(
            f"{folder}: {kind} reads text in both directions and writes none; {task.task} needs a causal model"
            + (" or an encoder–decoder" if task.task == "seq2seq" else "")
        )


def auto_class(folder: Path, task: FinetuneTask) -> str:
    """The class of `transformers` that opens a base for a task."""
    if task.task == "classify":
        return "AutoModelForSequenceClassification"
    two_parts = bool(check_model_directory(folder).get("is_encoder_decoder"))
    return "AutoModelForSeq2SeqLM" if two_parts else "AutoModelForCausalLM"


def load_base(folder: Path, task: FinetuneTask, labels: Sequence[str], tokenizer: Any, seed: int) -> Any:
    """The base in fp32 on the CPU, with a new layer of scores for `labels` where the task is classify.

    Returns a transformers PreTrainedModel, the same on every rank: new weights are drawn from `seed`. It is in training
    mode where the task wants dropout: the state of random numbers is in each checkpoint, so that a resumed run drops
    alike.
    """
    options: dict[str, Any] = {}
    if task.task == "classify":
        names = list(labels) or ["value"]  # of a regression
        options = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {label: number for number, label in enumerate(names)},
            "problem_type": PROBLEMS.get(task.problem, task.problem),
            "pad_token_id": tokenizer.pad_token_id,
            "new_head": True,  # the base may be a classifier of other labels
        }
    torch.manual_seed(seed)
    model = load_model(folder, auto_class(folder, task), remote_code=task.trust_remote_code, **options)
    keep_rotary_frequencies(model)
    return model.train(task.dropout)


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
    """Operations of a training step: 6 for each weight of the body and token (4 where it is frozen), and for each
    weight of the output layer and token with a target. Attention scores are left out; embeddings are looked up."""
    model_any: Any = model
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model_any.get_output_embeddings()
    head_weights = 0 if head is None else sum(operations(weight) for weight in head.parameters())
    ours = set() if head is None else {id(weight) for weight in head.parameters()}
    body = sum(operations(weight) for weight in model.parameters() if id(weight) not in tables | ours)
    return float(body * tokens + head_weights * head_tokens)


def operations(weight: Tensor) -> int:
    """Of a training step, a token: forward, backward to the inputs and, where it is learnt, to the weight."""
    return (6 if weight.requires_grad else 4) * weight.numel()


def fill(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Put trained weights into a model. weights: by name, a tied one under one of its names at least; those of frozen
    layers stay the base's own, which a checkpoint may hold rounded.

    Raises: PipelineError when a weight is missing.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    held = {**dict(model.named_buffers()), **named}
    missing = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in weights:
        if name not in named or named[name].requires_grad:
            held[name].data.copy_(weight)
        missing -= {name}
    if missing:
        raise PipelineError(f"the checkpoint has no {sorted(missing)[0]}")


def save_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    end: int | None,
    inputs: dict[str, Tensor],
    code_from: Path | None = None,
) -> list[Path]:
    """Write `folder`: the trained model in its base's type, its tokenizer, its generation settings.

    It is written under a temporary name, loaded again and must give the same logits on `inputs`; only then renamed.
    end: token that ends an answer. code_from: the base whose own code the model needs. Returns the files.
    Raises: PipelineError when the logits differ.
    """
    dtype = getattr(torch, str(model.config.dtype or "float32").removeprefix("torch."))
    for weight in model.parameters():
        weight.data.copy_(weight.to(dtype))
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
        kind = type(model).__name__
        if code_from is not None:
            for file in code_from.glob("*.py"):
                shutil.copyfile(file, temporary / file.name)
            kind = next(auto for auto, own in model.config.auto_map.items() if own.rpartition(".")[2] == kind)
        again = load_model(temporary, kind, remote_code=code_from is not None)
        difference = float((again(**inputs).logits - trained).abs().max())
        if not difference <= 1e-5 * float(trained.abs().max()):
            raise PipelineError(f"{temporary}: read back, its logits differ from the trained model's by {difference}")
        return commit_folder(temporary, folder)

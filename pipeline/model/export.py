"""The export stage: the trained weights as a Hugging Face model directory that gives the same logits.

The directory is first written under a temporary name, loaded again with `transformers`, and its logits are compared
with those of our own model, both in fp32. Only then are its files moved to their places.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline import manifest
from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, disk_errors, sync_directory, sync_file, write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model
from pipeline.model.directory import load_model, load_tokenizer
from pipeline.model.huggingface import to_config, to_weights
from pipeline.progress import log
from pipeline.recipe import ModelSettings, Recipe
from pipeline.tracking import Tracker

SHARD_SIZE = "5GB"  # a larger model is split into files of at most this size

# Prose, Chinese and code: what a model meets. Beside them stand drawn tokens, up to the context's end.
PASSAGES = (
    "The water of a river begins as rain on hills. It gathers in brooks, the brooks meet, and what was a trickle "
    "between two stones is, a hundred miles on, a river that carries ships. In 1879 its flow was 2,140 m³/s.",
    "河水从山上的雨开始。雨水汇成小溪，小溪相遇；石头之间的涓涓细流，流过一百里，就成了行船的大河。",
    'def flow(rain: list[float], area: float) -> float:\n    """Cubic metres a second."""\n'
    "    return sum(rain) / len(rain) * area / 86_400.0\n",
)


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Write `model/` from `checkpoints/final/` and `tokenizer/`.

    counts: parameters, bytes, vocab_size. metrics: logit_difference (largest difference of a logit between the
    directory and the trained model with weights of the same dtype, relative to the largest logit) and
    rounding_difference (the same against fp32 weights: what export.dtype costs).
    Raises: DataError when the checkpoint or the tokenizer is damaged or they do not belong together; PipelineError
    when the logits differ.
    """
    final, tokenizer_folder = recipe.workdir / "checkpoints" / "final", recipe.workdir / "tokenizer"
    trained = read_trained(final)
    model = _own_model(trained, final)
    tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > trained.vocab_size:
        raise DataError(
            f"{tokenizer_folder}: {len(tokenizer):,} words, but {final} was trained with {trained.vocab_size:,}; "
            "run the stages tokenize and pretrain again"
        )

    temporary = work.folder / f"export{TEMPORARY}"
    if temporary.exists():
        shutil.rmtree(temporary)
    with disk_errors(temporary):
        temporary.mkdir()
        write_directory(temporary, trained, tokenizer_folder, tokenizer, recipe.export.dtype)
    samples = sample_tokens(tokenizer, trained.vocab_size, trained.settings.max_seq_len)
    difference, rounding = compare(model, temporary, samples, recipe.export.dtype)
    log.info(f"export: largest difference of a logit, relative to the largest logit: {difference:.2e}")
    if not difference <= recipe.export.tolerance:  # a NaN must not pass
        raise PipelineError(
            f"export: the model read back from {temporary} differs from the trained one: logits by {difference:.3g} of "
            f"the largest (export.tolerance {recipe.export.tolerance:g}); nothing was exported"
        )
    outputs = _move_into_place(temporary, work.folder)
    metrics = {"logit_difference": difference, "rounding_difference": rounding}
    counts = {
        "parameters": sum(weight.numel() for weight in trained.weights.values()),
        "bytes": sum(path.stat().st_size for path in outputs),
        "vocab_size": trained.vocab_size,
    }
    return work.finish(outputs, counts, metrics)


# --- what pretraining left -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What pretraining left: the model's shape and its weights (fp32, our names)."""

    settings: ModelSettings
    vocab_size: int
    weights: dict[str, Tensor]


def read_trained(final: Path) -> Trained:
    """Read `final.json` and `weights.safetensors`. Raises: DataError naming the file and the remedy."""
    remedy = f"delete {final.parent} and run `pipeline pretrain` again"
    path = final / "final.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        settings, vocab_size = ModelSettings.model_validate(value["model"]), int(value["vocab_size"])
        path = final / "weights.safetensors"
        return Trained(settings, vocab_size, load_file(str(path)))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {remedy}") from None


def _own_model(trained: Trained, final: Path) -> torch.nn.Module:
    """Our model with the trained weights, in fp32. Raises: DataError naming weights that do not fit."""
    model = build_model(trained.settings, trained.vocab_size, seed=0)
    try:
        model.load_state_dict(trained.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{final}: weights and final.json do not belong together ({reason})") from None
    bad = [name for name, weight in trained.weights.items() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise DataError(f"{final}: {bad[0]} holds NaN or infinity (one of {len(bad)} such weights); training diverged")
    return model.eval()


# --- the directory -------------------------------------------------------------------------------------------------


def write_directory(folder: Path, trained: Trained, tokenizer_folder: Path, tokenizer: Any, dtype: str) -> None:
    """Write config.json, generation_config.json, the weights in `dtype` and the tokenizer's files into `folder`."""
    from huggingface_hub import save_torch_state_dict

    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = to_config(trained.settings, trained.vocab_size, tokens, dtype).to_diff_dict()
    if trained.settings.architecture == "transformer":
        config["rope_theta"] = trained.settings.rope_theta  # where readers older than transformers 5 look for it
    write_json(folder / "config.json", dict(sorted(config.items())))
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    known = [end for end in dict.fromkeys(ends) if end is not None and end != tokenizer.unk_token_id]
    write_json(folder / "generation_config.json", tokens | {"eos_token_id": known})
    state = {
        name: weight.to(getattr(torch, dtype)).contiguous()
        for name, weight in to_weights(trained.settings, trained.weights).items()
    }
    save_torch_state_dict(state, folder, max_shard_size=SHARD_SIZE)
    for output in manifest.load(tokenizer_folder).outputs:
        shutil.copyfile(tokenizer_folder / output.path, folder / output.path)


def _move_into_place(temporary: Path, folder: Path) -> list[Path]:
    """Sync each file and rename it into `folder`; returns the new paths."""
    moved = []
    with disk_errors(folder):
        for path in sorted(temporary.iterdir()):
            sync_file(path)
            os.replace(path, folder / path.name)
            moved.append(folder / path.name)
        temporary.rmdir()
        sync_directory(folder)
    return moved


# --- the comparison ------------------------------------------------------------------------------------------------


def sample_tokens(tokenizer: Any, vocab_size: int, max_seq_len: int) -> list[Tensor]:
    """Rows of ids to compare on, each (1, seq): text of three kinds, and drawn tokens as long as the context (at most
    2,048), so that every position is turned by its own angle."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:max_seq_len] for text in PASSAGES]
    drawn = torch.randint(vocab_size, (1, min(max_seq_len, 2048)), generator=torch.Generator().manual_seed(0))
    return [*(torch.tensor([row], dtype=torch.long) for row in rows if row), drawn]


def compare(model: torch.nn.Module, folder: Path, samples: list[Tensor], dtype: str) -> tuple[float, float]:
    """Largest difference of a logit between `model` and the directory, both computed in fp32, relative to the largest
    logit: with the model's weights rounded to `dtype` as the directory's are, and with them as they were trained.

    `model` is left with rounded weights.
    """
    exported = load_model(folder, "AutoModelForCausalLM")
    with torch.inference_mode():
        theirs = [exported(input_ids=tokens).logits for tokens in samples]
        del exported
        trained = [model(tokens) for tokens in samples]
        if dtype == "float32":
            difference = _difference(trained, theirs)
            return difference, difference
        rounded = getattr(torch, dtype)
        for weight in model.parameters():
            weight.copy_(weight.to(rounded))
        return _difference([model(tokens) for tokens in samples], theirs), _difference(trained, theirs)


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    largest = max(float(logits.abs().max()) for logits in ours)
    worst = torch.stack([(mine - other).abs().max() for mine, other in zip(ours, theirs, strict=True)]).max()
    return float(worst) / max(largest, 1e-30)

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
from torch import Tensor

from pipeline import manifest
from pipeline.errors import DataError, PipelineError
from pipeline.files import TEMPORARY, disk_errors, sync_directory, sync_file, write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model
from pipeline.model.directory import load_tokenizer
from pipeline.model.huggingface import Piece, pieces, to_config
from pipeline.model.parity import compare
from pipeline.model.weight_files import WeightFiles, return_freed_memory, write_shards
from pipeline.progress import log
from pipeline.recipe import ExportSettings, ModelSettings, Recipe
from pipeline.tracking import Tracker

# Prose, Chinese and code: what a model meets. Beside them stand drawn tokens, up to the context's end.
PASSAGES = (
    "The water of a river begins as rain on hills. It gathers in brooks, the brooks meet, and what was a trickle "
    "between two stones is, a hundred miles on, a river that carries ships. In 1879 its flow was 2,140 m³/s.",
    "河水从山上的雨开始。雨水汇成小溪，小溪相遇；石头之间的涓涓细流，流过一百里，就成了行船的大河。",
    'def flow(rain: list[float], area: float) -> float:\n    """Cubic metres a second."""\n'
    "    return sum(rain) / len(rain) * area / 86_400.0\n",
)


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Write `model/` from `checkpoints/final/` and `tokenizer/`, holding one file of weights in memory
    (export.shard_bytes), or the embedding, the output layer and one layer, in fp32, where these are more.

    counts: parameters, bytes, vocab_size. metrics: logit_difference (largest difference of a logit between the
    directory and the trained model with weights of the same dtype, relative to the largest logit) and
    rounding_difference (the same against fp32 weights: what export.dtype costs).
    Raises: DataError when the checkpoint or the tokenizer is damaged or they do not belong together; PipelineError
    when the logits differ.
    """
    return_freed_memory()
    final, tokenizer_folder = recipe.workdir / "checkpoints" / "final", recipe.workdir / "tokenizer"
    trained = read_trained(final)
    tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > trained.vocab_size:
        raise DataError(
            f"{tokenizer_folder}: {len(tokenizer):,} words, but {final} was trained with {trained.vocab_size:,}; "
            "run the stages tokenize and pretrain again"
        )

    settings = recipe.export
    temporary = work.folder / f"export{TEMPORARY}"
    if temporary.exists():
        shutil.rmtree(temporary)
    with disk_errors(temporary):
        temporary.mkdir()
        write_directory(temporary, trained, tokenizer_folder, tokenizer, settings)
    tokens = sample_tokens(tokenizer, trained.vocab_size, trained.settings.max_seq_len)
    difference, rounding = compare(
        trained.settings, trained.vocab_size, trained.files, temporary, tokens, settings.dtype, settings.shard_bytes
    )
    log.info(f"export: largest difference of a logit, relative to the largest logit: {difference:.2e}")
    if not difference <= settings.tolerance:  # a NaN must not pass
        raise PipelineError(
            f"export: the model read back from {temporary} differs from the trained one: logits by {difference:.3g} of "
            f"the largest (export.tolerance {settings.tolerance:g}); nothing was exported"
        )
    outputs = _move_into_place(temporary, work.folder)
    metrics = {"logit_difference": difference, "rounding_difference": rounding}
    counts = {
        "parameters": trained.files.parameters,
        "bytes": sum(path.stat().st_size for path in outputs),
        "vocab_size": trained.vocab_size,
    }
    return work.finish(outputs, counts, metrics)


# --- what pretraining left -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What pretraining left: the model's shape and its weights (fp32, our names), which stay on disk."""

    settings: ModelSettings
    vocab_size: int
    files: WeightFiles


def read_trained(final: Path) -> Trained:
    """Read `final.json`, and which weights `weights.safetensors` holds.

    Raises: DataError naming the file and the remedy, or weights that do not fit the settings.
    """
    remedy = f"delete {final.parent} and run `pipeline pretrain` again"
    path = final / "final.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        settings, vocab_size = ModelSettings.model_validate(value["model"]), int(value["vocab_size"])
        files = WeightFiles(final / "weights.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {remedy}") from None
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from None
    with torch.device("meta"):
        model = build_model(settings, vocab_size, seed=0)
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    if wrong := sorted(expected.items() ^ files.shapes.items()):
        name, found = wrong[0][0], files.shapes.get(wrong[0][0])
        raise DataError(
            f"{final}: weights and final.json do not belong together ({name} is {found or 'missing'}, should be "
            f"{expected.get(name, 'absent')})"
        )
    return Trained(settings, vocab_size, files)


# --- the directory -------------------------------------------------------------------------------------------------


def write_directory(
    folder: Path, trained: Trained, tokenizer_folder: Path, tokenizer: Any, chosen: ExportSettings
) -> None:
    """Write config.json, generation_config.json, the weights and the tokenizer's files into `folder`."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = to_config(trained.settings, trained.vocab_size, tokens, chosen.dtype).to_diff_dict()
    if trained.settings.architecture == "transformer":
        config["rope_theta"] = trained.settings.rope_theta  # where readers older than transformers 5 look for it
    write_json(folder / "config.json", dict(sorted(config.items())))
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    known = [end for end in dict.fromkeys(ends) if end is not None and end != tokenizer.unk_token_id]
    write_json(folder / "generation_config.json", tokens | {"eos_token_id": known})
    parts = {piece.theirs: piece for piece in pieces(trained.settings, trained.files.shapes)}

    def shape(piece: Piece) -> tuple[int, ...]:
        rows, *rest = trained.files.shapes[piece.ours]
        return (rows if piece.rows is None else piece.rows, *rest)

    def read(name: str) -> Tensor:
        return trained.files.read(parts[name].ours, parts[name].first, parts[name].rows)

    shapes = {name: shape(piece) for name, piece in parts.items()}
    try:
        write_shards(folder, shapes, read, getattr(torch, chosen.dtype), chosen.shard_bytes)
    except DataError as error:
        raise DataError(f"{trained.files.path}: {error}") from None
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


def sample_tokens(tokenizer: Any, vocab_size: int, max_seq_len: int) -> Tensor:
    """A row of ids to compare on, (1, seq), as long as the context (at most 2,048), so that every position is turned
    by its own angle: text of three kinds in its first half, drawn tokens behind it."""
    length = min(max_seq_len, 2048)
    text = [number for passage in PASSAGES for number in tokenizer(passage, add_special_tokens=False)["input_ids"]]
    row = torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    known = torch.tensor(text[: length // 2], dtype=torch.long)
    row[0, : len(known)] = known
    return row

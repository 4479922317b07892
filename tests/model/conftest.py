"""A real tokenizer and a real (tiny, untrained) model as pretraining would leave it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.manifest import Work
from pipeline.model.build import build_model
from pipeline.recipe import ExportSettings, ModelSettings, Recipe

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["the river begins as rain on hills", "def flow(rain): return sum(rain)", "河水从山上的雨开始"] * 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE of 320 words and save it; returns its size."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModelSettings]:
    """A shape that exercises grouped queries; a large init_std, so that logits differ much from token to token."""

    def make(**changes: Any) -> ModelSettings:
        shape: dict[str, Any] = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "max_seq_len": 64, "init_std": 0.3}
        return ModelSettings(**(shape | changes))

    return make


Trained = Callable[..., tuple[Recipe, Work]]


@pytest.fixture
def trained(tmp_path: Path, tiny: Callable[..., ModelSettings]) -> Trained:
    """Builds tokenizer/ and checkpoints/final/ of a run with `tiny(**changes)`, and the work of the export stage."""

    def make(export: dict[str, Any] | None = None, **changes: Any) -> tuple[Recipe, Work]:
        settings = tiny(**changes)
        run = tmp_path / "run"
        folder = run / "tokenizer"
        folder.mkdir(parents=True)
        vocab_size = save_tokenizer(folder)
        Work("tokenizer", folder, "key", {}, {}).finish(folder.iterdir())
        final = run / "checkpoints" / "final"
        final.mkdir(parents=True)
        model = build_model(settings, vocab_size, seed=1)
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, final / "weights.safetensors")
        shape = {"model": settings.settings(), "vocab_size": vocab_size, "step": 0}
        (final / "final.json").write_text(json.dumps(shape), encoding="utf-8")
        (run / "model").mkdir()
        recipe = Recipe(workdir=run, export=ExportSettings(**(export or {})))
        return recipe, Work("export", run / "model", "key", {}, {})

    return make

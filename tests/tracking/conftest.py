"""Recipes and finished stages to track; a real model directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_stages import work_of

from pipeline import delivery
from pipeline.manifest import Work
from pipeline.recipe import Recipe


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests track into their own files, whatever the developer's environment says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def time_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage leaves to the next start, when it may not wait longer, is not what a busy machine shall decide."""
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 300.0)
    monkeypatch.setattr(delivery, "CLOSE_SECONDS_AWAY", 300.0)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new sqlite store; making one takes seconds, so tests copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def recipe(tmp_path: Path, empty_store: Path) -> Recipe:
    workdir = tmp_path / "runs of a day" / "tiny"
    workdir.mkdir(parents=True)
    shutil.copy(empty_store, workdir.parent)
    (workdir / "recipe.yaml").write_text("name: tiny\n", encoding="utf-8")
    return Recipe.model_validate(
        {"name": "tiny", "workdir": workdir, "corpus": {"sources": [{"name": "python", "type": "python_docs"}]}}
    )


@pytest.fixture
def shard_work(recipe: Recipe) -> Work:
    return work_of(recipe, "shard", "text", **{"source:python": "5" * 32})


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny Llama with random weights and a tokenizer, as `export` writes it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("exported") / "model"
    words = {"<|endoftext|>": 0, "<|pad|>": 1, "a": 2, "b": 3, "c": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>").save_pretrained(
        folder
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    yield folder

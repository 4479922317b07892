"""A whole run's folder in miniature: held-out text, a tiny Llama, a tiny summariser, a tiny classifier."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from pipeline.corpus.document import Document
from pipeline.corpus.text_tars import TextTarWriter
from pipeline.manifest import Work
from pipeline.recipe import Recipe

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = {
    "prose": [
        "The river runs to the sea. " * 6,
        "A bridge stands over the water.",
        "Ein Fluß, über den Brücken führen.",
    ],
    "verse": ["床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。", "白日依山盡，黃河入海流。"],
}
LABELS = ["bridge", "moon", "river"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more by sharing their work between threads than they win.

    Given back after each file: another number of threads adds in another order, and other tests compare bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # what find_device and child processes go by
        yield
    torch.set_num_threads(before)


def _write_text(folder: Path, texts: dict[str, list[str]]) -> None:
    """Text tars with nothing but a validation part, and their manifest."""
    outputs: list[Path] = []
    sources: dict[str, Any] = {}
    for source, documents in texts.items():
        with TextTarWriter(folder / "validation", f"{source}-00000", 1 << 20) as tars:
            for n, text in enumerate(documents):
                tars.add(f"{source}-00000-{n:07d}", Document(text, f"{source}/{n}", source))
        outputs += tars.paths
        sources[source] = {"validation": {"documents": tars.documents, "bytes": tars.bytes}}
    folder.mkdir(parents=True, exist_ok=True)
    Work("shard", folder, "key", {}, {}).finish(outputs, counts={"sources": sources})


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def write_text() -> Callable[[Path, dict[str, list[str]]], None]:
    """Write the held-out documents of sources as the shard stage does."""
    return _write_text


@pytest.fixture
def write_lines() -> Callable[[Path, list[dict[str, str]]], None]:
    """Write JSON lines."""
    return _write_lines


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 words over TEXTS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text for texts in TEXTS.values() for text in texts], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[0], bos_token=SPECIAL[0], pad_token=SPECIAL[1]
    )
    fast.chat_template = TEMPLATE
    return fast


def _llama_config(vocab_size: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        **more,
    )


def _save_causal(folder: Path, tokenizer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    LlamaForCausalLM(_llama_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """What the stages before evaluate leave, with weights that nobody trained."""
    workdir = tmp_path_factory.mktemp("run")
    _write_text(workdir / "text", TEXTS)
    _save_causal(workdir / "model", tokenizer, seed=1)
    _save_causal(workdir / "finetune" / "answer" / "model", tokenizer, seed=2)
    names = dict(enumerate(LABELS))
    config = _llama_config(len(tokenizer), id2label=names, label2id={label: i for i, label in names.items()})
    torch.manual_seed(3)
    classifier = workdir / "finetune" / "topic" / "model"
    LlamaForSequenceClassification(config).save_pretrained(classifier)
    tokenizer.save_pretrained(classifier)
    answers = [
        {"id": f"a{n}", "prompt": f"What is {n}?", "completion": f"The number {n} runs to the sea."} for n in range(9)
    ]
    topics = [{"id": f"t{n}", "text": f"{LABELS[n % 3]} {n}", "label": LABELS[n % 3]} for n in range(12)]
    _write_lines(workdir / "finetune" / "answer" / "examples" / "validation.jsonl", answers)
    _write_lines(workdir / "finetune" / "topic" / "examples" / "validation.jsonl", topics)
    training = [*topics, {"id": "x", "text": "more of the river", "label": "river"}]
    _write_lines(workdir / "finetune" / "topic" / "examples" / "train.jsonl", training)
    return workdir


@pytest.fixture
def workdir(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture
def recipe(workdir: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "workdir": workdir,
            "model": {"max_seq_len": 64},
            "pretrain": {"seq_len": 32},
            "finetune": {
                "answer": {"task": "sft", "train_files": "a.jsonl", "seq_len": 48},
                "topic": {"task": "classify", "train_files": "b.jsonl", "seq_len": 16},
            },
            "evaluate": {"max_examples": 6, "max_new_tokens": 5, "prompts": ["The river", ""], "batch": 4},
        }
    )

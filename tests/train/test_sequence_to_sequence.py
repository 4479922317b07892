"""Encoder–decoders as they are fine-tuned: what is learnt, and that padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_llama, write_model

from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import fill, load_base, open_tokenizer, save_model
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.instruction import SftTask
from pipeline.train.sequence_to_sequence import Seq2SeqTask

SETTINGS = FinetuneTask(
    task="seq2seq", seq_len=32, global_batch=4, micro_batch=2, epochs=1, prompt="say it again: {source}", dropout=False
)
EXAMPLES = tuple(Example(str(n), f"text {n}" + " word" * (n % 4), f"answer {n}" + " so" * (n % 3)) for n in range(10))


@pytest.fixture(scope="module", params=["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def task(folder: Path) -> Seq2SeqTask:
    tokenizer = open_tokenizer(folder, SETTINGS, "translate")
    model = load_base(folder, SETTINGS, (), tokenizer, seed=1)
    model.requires_grad_(False)
    return Seq2SeqTask("translate", SETTINGS, model, tokenizer, Examples("seq2seq", EXAMPLES, EXAMPLES[:3]), seed=1)


def test_loss_is_transformers_own_on_each_example_alone(task: Seq2SeqTask) -> None:
    """`labels` given to the model: its own shift, its own mean."""
    expected = 0.0
    for number in task.epochs.examples(0):
        one = task.train[number]
        source, target = torch.from_numpy(one.source)[None], torch.from_numpy(one.target)[None]
        expected += float(task.model(input_ids=source, labels=target).loss) * target.shape[1]
    assert float(task.loss_sum(task.model, task.batch([0, 1, 2, 3]))) == pytest.approx(expected, rel=1e-5)
    halves = [float(task.loss_sum(task.model, task.batch(part))) for part in ([0, 1, -1], [2, 3, -1])]
    assert sum(halves) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss_sum(task.model, task.batch([-1, -1]))) == 0.0
    assert sum(task.targets(step) for step in range(3)) == task.counts["target_tokens"]
    assert np.isfinite(task.validate(task.model, ALONE, list)["loss"])


def test_the_prompt_is_read_and_the_target_learnt(task: Seq2SeqTask, folder: Path) -> None:
    tokenizer = open_tokenizer(folder, SETTINGS, "translate")
    shown = task.shown(tokenizer, 0)
    assert shown.text == "say it again: text 0 ⟦answer 0<|endoftext|>⟧" and not any(shown.learnt)
    assert "".join(shown.more["target_pieces"]) == "answer 0<|endoftext|>"


def test_what_is_too_long_is_cut_or_left_out(folder: Path) -> None:
    tokenizer = open_tokenizer(folder, SETTINGS, "translate")
    model: Any = load_base(folder, SETTINGS, (), tokenizer, seed=1)
    long = Examples("seq2seq", (Example("1", "x y z " * 30, "short"), Example("2", "a", "no " * 40)), EXAMPLES[:1])
    task = Seq2SeqTask("translate", SETTINGS, model, tokenizer, long, seed=1)
    assert (task.counts["truncated"], task.counts["long_completion"], len(task.train)) == (1, 1, 1)
    assert len(task.train[0].source) == 32
    with pytest.raises(DataError, match="no target fits into seq_len 32"):
        Seq2SeqTask("t", SETTINGS, model, tokenizer, Examples("seq2seq", long.train[1:], EXAMPLES[:1]), seed=1)


def test_saved_it_is_the_same_model(task: Seq2SeqTask, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = open_tokenizer(folder, SETTINGS, "translate")
    model = load_base(folder, SETTINGS, (), tokenizer, seed=1)
    fill(model, [(name, weight * 1.1) for name, weight in model.named_parameters()])
    save_model(tmp_path / "model", model, tokenizer, task.end_token(), task.model_inputs())
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")(["say it again: text 1"], return_tensors="pt")
    assert again.generate(input_ids=tokens["input_ids"], max_new_tokens=4).shape[0] == 1


def test_a_decoder_learns_the_target_behind_the_prompt(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    settings = SETTINGS.model_copy(update={"seq_len": 64})
    tokenizer = open_tokenizer(folder, settings, "translate")
    model = load_base(folder, settings, (), tokenizer, seed=1)
    task = SftTask("translate", settings, model, tokenizer, Examples("seq2seq", EXAMPLES, EXAMPLES[:3]), seed=1)
    text = task.shown(tokenizer, 0).text
    assert "<|im_start|>user\nsay it again: text 0<|im_end|>" in text and text.endswith("⟦answer 0<|im_end|>⟧")

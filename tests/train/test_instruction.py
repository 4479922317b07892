"""Chats as the model sees them: what is learnt, what is cut, and that padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import write_llama, write_lstm

from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import PLAIN_TEMPLATE, load_base, open_tokenizer
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.instruction import ChatFormat, SftTask, shares

SETTINGS = FinetuneTask(task="sft", seq_len=64, global_batch=4, micro_batch=2, epochs=2)


@pytest.fixture(scope="module", params=[write_llama, write_lstm], ids=["llama", "lstm"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.param(tmp_path_factory.mktemp("base"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return open_tokenizer(base, SETTINGS, "chat")


def examples(count: int) -> tuple[Example, ...]:
    return tuple(
        Example(str(n), f"add {n} and {n + 1} " + "please " * (n % 5), f"that is {2 * n + 1}") for n in range(count)
    )


def make_task(base: Path, tokenizer: Any, train: tuple[Example, ...]) -> SftTask:
    model = load_base(base, SETTINGS, (), tokenizer, seed=1)
    return SftTask("sft", SETTINGS, model, tokenizer, Examples("sft", train, examples(3)), seed=1)


def test_the_answer_and_its_end_are_learnt_and_nothing_else(tokenizer: Any) -> None:
    (encoded,) = ChatFormat(tokenizer, 64).encode([Example("1", "add 1 and 2", "it is 3")])
    assert encoded is not None
    words = [tokenizer.decode([token]) for token in encoded.tokens]
    assert "".join(words[: encoded.first]) == "<|im_start|>user\nadd 1 and 2<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(words[encoded.first :]) == "it is 3<|im_end|>"
    assert encoded.tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    mask = tokenizer.apply_chat_template(
        [{"role": "user", "content": "add 1 and 2"}, {"role": "assistant", "content": "it is 3"}],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )["assistant_masks"]
    assert [number for number, learnt in enumerate(mask) if learnt] == list(range(encoded.first, len(encoded.tokens)))


def test_chinese_answers_are_learnt_whole(tokenizer: Any) -> None:
    (encoded,) = ChatFormat(tokenizer, 64).encode([Example("1", "一加二", "等于三。")])
    assert encoded is not None
    assert tokenizer.decode(encoded.tokens[encoded.first :]) == "等于三。<|im_end|>"


def test_prompts_are_cut_at_their_end_and_completions_never(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, 40)
    prompt = "first words " + "and more 漢字 " * 30
    cut, impossible, short = chat.encode(
        [Example("1", prompt, "the answer"), Example("2", "x", "yes " * 60), Example("3", "hello", "you")]
    )
    assert impossible is None
    assert short is not None and not short.cut
    assert cut is not None and cut.cut and len(cut.tokens) <= 40
    assert tokenizer.decode(cut.tokens[cut.first :]) == "the answer<|im_end|>"
    kept = tokenizer.decode(cut.tokens[: cut.first]).removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
    assert prompt.startswith(kept) and kept.startswith("first words")
    assert len(cut.tokens) >= 36  # as much of the prompt as fits


def test_a_template_that_does_not_continue_is_refused(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{% if add_generation_prompt %}go:{% else %}{{ messages[-1].content }}{% endif %}"
        with pytest.raises(DataError, match="chat template"):
            ChatFormat(tokenizer, 64).encode([Example("1", "a", "b")])
    finally:
        tokenizer.chat_template = before


def test_the_plain_template_ends_with_the_end_of_text(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = PLAIN_TEMPLATE
        (encoded,) = ChatFormat(tokenizer, 64).encode([Example("1", "add 1 and 2", "it is 3")])
    finally:
        tokenizer.chat_template = before
    assert encoded is not None
    assert tokenizer.decode(encoded.tokens[: encoded.first]) == "add 1 and 2\n"
    assert tokenizer.decode(encoded.tokens[encoded.first :]) == "it is 3<|endoftext|>"


def test_loss_is_that_of_each_example_alone(base: Path, tokenizer: Any) -> None:
    """By hand: each example by itself, unpadded, all logits, labels shifted; against the padded batch."""
    task = make_task(base, tokenizer, examples(10))
    task.model.eval().requires_grad_(False)
    expected, targets = 0.0, 0
    for number in task.epochs.examples(0):
        encoded = task.train[number]
        tokens = torch.from_numpy(encoded.tokens)
        logits = task.model(input_ids=tokens[None]).logits[0, encoded.first - 1 : -1]
        expected += float(F.cross_entropy(logits, tokens[encoded.first :], reduction="sum"))
        targets += len(tokens) - encoded.first
    batch = task.batch([0, 1, 2, 3])
    assert batch["tokens"].shape[1] % 8 == 0
    assert float(task.loss_sum(task.model, batch)) == pytest.approx(expected, rel=1e-5)
    assert task.targets(0) == targets == int((batch["targets"] != -100).sum())
    halves = [float(task.loss_sum(task.model, task.batch(part))) for part in ([0, 1, -1], [2, 3, -1])]
    assert sum(halves) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss_sum(task.model, task.batch([-1, -1]))) == 0.0


def test_steps_targets_and_validation(base: Path, tokenizer: Any) -> None:
    task = make_task(base, tokenizer, examples(10))
    assert task.steps == 6  # 10 examples in batches of 4: 3 steps an epoch
    assert sum(task.targets(step) for step in range(3)) == task.counts["target_tokens"]
    assert task.tokens_per_step == round(task.counts["tokens"] / 3)
    task.model.eval().requires_grad_(False)
    alone = task.validate(task.model, Ranks(0, 1, 0, 1, "alone"), list)
    parts: list[list[float]] = []
    for rank in range(2):
        task.validate(
            task.model, Ranks(rank, 2, rank, 2, "local"), lambda values: parts.append(list(values)) or [1.0, 1.0]
        )
    total, count = (sum(values) for values in zip(*parts, strict=True))
    assert total / count == pytest.approx(alone["loss"], rel=1e-5)


def test_fingerprint_follows_data_and_settings(base: Path, tokenizer: Any) -> None:
    task = make_task(base, tokenizer, examples(10))
    assert task.fingerprint == make_task(base, tokenizer, examples(10)).fingerprint
    assert task.fingerprint != make_task(base, tokenizer, examples(11)).fingerprint


def test_shares_are_equal_in_number_and_cover_all() -> None:
    for world in (1, 2, 3):
        dealt = [list(shares(list(range(11)), 2, Ranks(rank, world, rank, world, "local"))) for rank in range(world)]
        assert len({len(batches) for batches in dealt}) == 1
        assert all(len(batch) == 2 for batches in dealt for batch in batches)
        seen = [item for batches in dealt for batch in batches for item in batch if item is not None]
        assert sorted(seen) == list(range(11))


TURNS = (("user", "one?"), ("assistant", "first"), ("user", "two?"), ("assistant", "second"))


def test_every_turn_of_the_assistant_is_learnt(tokenizer: Any) -> None:
    (encoded,) = ChatFormat(tokenizer, 64).encode([Example("1", "history", "second", messages=TURNS)])
    assert encoded is not None
    chat = [{"role": role, "content": content} for role, content in TURNS]
    mask = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
    assert encoded.learnt.tolist() == [bool(learnt) for learnt in mask[: len(encoded.tokens)]]
    words = [tokenizer.decode([token]) for token, learnt in zip(encoded.tokens, encoded.learnt, strict=True) if learnt]
    assert "".join(words) == "first<|im_end|>second<|im_end|>"


def test_the_oldest_turns_are_left_out_where_a_chat_is_too_long(tokenizer: Any) -> None:
    turns = (("system", "short"), *TURNS)
    whole = ChatFormat(tokenizer, 64).encode([Example("1", "history", "second", messages=turns)])[0]
    assert whole is not None
    cut = ChatFormat(tokenizer, len(whole.tokens) - 1).encode([Example("1", "history", "second", messages=turns)])[0]
    assert cut is not None and cut.cut
    text = tokenizer.decode(cut.tokens)
    assert "short" in text and "two?" in text and "one?" not in text
    assert ChatFormat(tokenizer, 8).encode([Example("1", "history", "second", messages=turns)]) == [None]


def test_a_template_that_refuses_a_chat_is_told(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ raise_exception('only users here') }}"
        with pytest.raises(DataError, match=r"refuses a chat of user, assistant.*only users here"):
            ChatFormat(tokenizer, 64).encode([Example("1", "a", "b")])
    finally:
        tokenizer.chat_template = before

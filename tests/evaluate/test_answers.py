"""Answers: prompts are cut as in fine-tuning, and asked in the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.evaluate.answers import answer, shortened
from pipeline.evaluate.generate import GenerationSettings, encode_prompt, generate_text
from pipeline.model.directory import load_causal_model

PROMPT = "Say what the river does. " + " ".join(f"word{n}" for n in range(30)) + " 月光"


def test_prompt_keeps_its_beginning(tokenizer: Any) -> None:
    whole = len(encode_prompt(tokenizer, PROMPT, chat=True))
    assert shortened(tokenizer, PROMPT, whole) == PROMPT
    for room in (whole - 1, whole - 40, 40):
        short = shortened(tokenizer, PROMPT, room)
        assert PROMPT.startswith(short)
        assert room - 4 <= len(encode_prompt(tokenizer, short, chat=True)) <= room


def test_no_room_is_said(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"max_new_tokens leaves 3 tokens for a prompt.*seq_len"):
        shortened(tokenizer, PROMPT, 3)


def test_answers_are_those_to_the_shortened_prompts(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_causal_model(run_folder / "model")
    greedy = GenerationSettings(max_tokens=5, temperature=0)
    short = shortened(tokenizer, PROMPT, 45)
    expected = generate_text(model, tokenizer, [short, "Short."], greedy, chat=True)
    with caplog.at_level("INFO", logger="pipeline"):
        assert answer(model, tokenizer, [PROMPT, "Short."], greedy, longest=50) == [text.strip() for text in expected]
    assert "1 of 2 prompts are cut at their end to 45 tokens" in caplog.text

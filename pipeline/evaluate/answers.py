"""Answers of a model to prompts, asked as in fine-tuning: in the chat template, long prompts cut at their end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluate.generate import GenerationSettings, encode_prompt, generate_text
from pipeline.progress import log
from pipeline.train.example import without_oldest

Messages = list[dict[str, str]]  # a conversation: role and content of each turn


def conversation(example: Mapping[str, str]) -> Messages:
    """All that was said before the last answer of a chat of several turns; [] for an example that is none."""
    found: Messages = json.loads(example.get("messages", "[]"))
    return found[:-1]


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[str | Messages], settings: GenerationSettings, longest: int
) -> list[str]:
    """The model's answer to each prompt, or to each conversation's last turn, in order, without blanks around it.

    Args: model, tokenizer, as `load_causal_model` gives them, the latter with a chat template; longest, tokens of
    prompt and answer together. A prompt that leaves no room for `settings.max_tokens` is cut at its end, as fine-tuning
    cuts it: at its beginning stand the instruction and the template's opening. Of a conversation the oldest turns
    after the system's go first, then the end of what is left of it.
    Raises: DataError when max_tokens leaves no room for any prompt.
    """
    room = longest - settings.max_tokens
    fitting = [shortened(tokenizer, prompt, room) for prompt in prompts]
    if cut := sum(short != prompt for short, prompt in zip(fitting, prompts, strict=True)):
        log.info("%d of %d prompts are cut at their end to %d tokens", cut, len(prompts), room)
    return [text.strip() for text in generate_text(model, tokenizer, fitting, settings, chat=True)]


def shortened(tokenizer: Any, prompt: str | Messages, room: int) -> str | Messages:
    """As much of the prompt's beginning, or of the conversation's end, as gives at most `room` tokens in the template.

    Raises: DataError when even an empty prompt gives more.
    """
    if isinstance(prompt, str):
        return _cut(tokenizer, prompt, room, [])
    while len(encode_prompt(tokenizer, prompt, chat=True)) > room:
        kept = without_oldest([turn["role"] for turn in prompt])
        if kept is None:
            *before, last = prompt
            return [*before, {**last, "content": _cut(tokenizer, last["content"], room, before, last["role"])}]
        prompt = [prompt[turn] for turn in kept]
    return prompt


def _cut(tokenizer: Any, prompt: str, room: int, before: Messages, role: str = "user") -> str:
    """As much of the beginning of a turn as fits behind the turns `before`."""

    def size(text: str) -> int:
        return len(encode_prompt(tokenizer, [*before, {"role": role, "content": text}], chat=True))

    if (over := size(prompt) - room) <= 0:
        return prompt
    ends = [
        end for _, end in tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    keep = len(ends)
    while over > 0:
        keep -= over
        if keep <= 0:
            raise DataError(
                f"evaluate.max_new_tokens leaves {room} tokens for a prompt, its chat template alone takes more; "
                "lower it, or raise the task's seq_len"
            )
        short = prompt[: ends[keep - 1]].rstrip()
        over = size(short) - room
    return short

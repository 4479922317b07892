"""Answers of a model to prompts, asked as in fine-tuning: in the chat template, long prompts cut at their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluate.generate import GenerationSettings, encode_prompt, generate_text
from pipeline.progress import log


def answer(model: Any, tokenizer: Any, prompts: Sequence[str], settings: GenerationSettings, longest: int) -> list[str]:
    """The model's answer to each prompt, in order, without blanks around it.

    Args: model, tokenizer, as `load_causal_model` gives them, the latter with a chat template; longest, tokens of
    prompt and answer together. A prompt that leaves no room for `settings.max_tokens` is cut at its end, as fine-tuning
    cuts it: at its beginning stand the instruction and the template's opening.
    Raises: DataError when max_tokens leaves no room for any prompt.
    """
    room = longest - settings.max_tokens
    fitting = [shortened(tokenizer, prompt, room) for prompt in prompts]
    if cut := sum(short != prompt for short, prompt in zip(fitting, prompts, strict=True)):
        log.info("%d of %d prompts are cut at their end to %d tokens", cut, len(prompts), room)
    return [text.strip() for text in generate_text(model, tokenizer, fitting, settings, chat=True)]


def shortened(tokenizer: Any, prompt: str, room: int) -> str:
    """As much of the prompt's beginning as gives at most `room` tokens in the chat template.

    Raises: DataError when even an empty prompt gives more.
    """
    if (over := len(encode_prompt(tokenizer, prompt, chat=True)) - room) <= 0:
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
        over = len(encode_prompt(tokenizer, short, chat=True)) - room
    return short

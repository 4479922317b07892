"""A model's text on a terminal while it is being made."""

from __future__ import annotations

import sys
import time
from typing import Any

from pipeline.evaluate.generate import (
    GenerationSettings,
    continue_prompts,
    encode_prompt,
    fit_prompts,
    generate_ids,
    reads_with_encoder,
    stop_of,
)
from pipeline.progress import log


def stream_text(model: Any, tokenizer: Any, prompt: str, settings: GenerationSettings, chat: bool = False) -> str:
    """Print the prompt (unless it is a message or a question) and its continuation as it is made; returns the latter.

    Beam search is printed when it is done: until then nobody knows its first word.
    """
    ids = fit_prompts([encode_prompt(tokenizer, prompt, chat, model)], model, settings)[0]
    if not chat and not reads_with_encoder(model):
        sys.stdout.write(prompt)
        sys.stdout.flush()
    if settings.beams > 1:
        started = time.monotonic()
        made = continue_prompts(model, tokenizer, [prompt], settings, chat)[0]
        sys.stdout.write(made.text + "\n")
        sys.stdout.flush()
        tell_rate(made.tokens, time.monotonic() - started)
        return made.text
    return stream_ids(model, tokenizer, ids, settings)


def stream_ids(model: Any, tokenizer: Any, ids: list[int], settings: GenerationSettings) -> str:
    """Continue `ids`, printing text as it is made and the rate at the end; returns the text. Ctrl-C ends it early."""
    from transformers import TextStreamer

    # Of the newest text so much may be the beginning of a stop string, and waits.
    held = max((len(stop) - 1 for stop in settings.stop), default=0)

    class Counting(TextStreamer):  # type: ignore[misc]
        """Prints whole characters only, counts tokens, keeps the text."""

        text, tokens, printed = "", -1, 0  # the first thing put is the prompt

        def put(self, value: Any) -> None:
            self.tokens += 1
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            end = stop_of(self.text, settings.stop)
            if end is not None:
                self.text = self.text[:end]
            ready = len(self.text) if stream_end or end is not None else max(self.printed, len(self.text) - held)
            sys.stdout.write(self.text[self.printed : ready] + ("\n" if stream_end else ""))
            sys.stdout.flush()
            self.printed = ready

    streamer = Counting(tokenizer, skip_prompt=True, skip_special_tokens=True)
    started = time.monotonic()
    try:
        generate_ids(model, tokenizer, [ids], settings, streamer)
    except KeyboardInterrupt:
        streamer.end()
    tell_rate(max(streamer.tokens, 0), time.monotonic() - started)
    return str(streamer.text)


def tell_rate(tokens: int, seconds: float) -> None:
    """Tokens a second, to standard error."""
    log.info(f"{tokens:,} tokens, {tokens / max(seconds, 1e-9):.1f} tokens/s")

"""A conversation with a fine-tuned model, on a terminal or through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.evaluate.generate import GenerationSettings, context_length, encode_messages
from pipeline.evaluate.streaming import stream_ids
from pipeline.model.directory import load_text_model
from pipeline.progress import log

PROMPT = "you> "


def chat(model_dir: Path, system: str | None = None, **options: Any) -> None:
    """`pipeline generate --chat` without a prompt: read messages from standard input, a line each, and stream the
    answers to standard output, until the input ends (Ctrl-D). `/new` begins a new conversation. When the conversation
    outgrows the model's context its oldest turns are forgotten, and a line says so. system: a first message that
    sets the tone; options: fields of GenerationSettings.

    Raises: DataError for a folder without a usable model or chat template.
    """
    settings = GenerationSettings(**options)
    model, tokenizer = load_text_model(model_dir, device=str(find_device(ALONE).torch_device))
    start = [{"role": "system", "content": system}] if system else []
    encode_messages(tokenizer, [*start, {"role": "user", "content": "?"}])  # refuse now, not after the first message
    if sys.stdin.isatty():
        log.info(f"{model_dir}: give a message and Enter; /new begins again; Ctrl-D ends")
    messages = list(start)
    context = context_length(model)
    if context is not None and context <= settings.max_tokens:
        raise DataError(f"max-tokens={settings.max_tokens}: the model's context is {context} tokens; ask for fewer")
    while (line := _read()) is not None:
        if line.strip() == "/new":
            messages = list(start)
            continue
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        ids = encode_messages(tokenizer, messages)
        room = context - settings.max_tokens if context is not None else len(ids)
        while len(ids) > room and len(messages) > len(start) + 1:
            del messages[len(start) : len(start) + 2]  # the oldest question with its answer
            ids = encode_messages(tokenizer, messages)
            log.warning("the conversation is longer than the model's context: its oldest turn is forgotten")
        if len(ids) > room:
            log.warning(f"the message is longer than the model's context: only its last {room} tokens are read")
        answer = stream_ids(model, tokenizer, ids[-room:], settings)
        messages.append({"role": "assistant", "content": answer})


def _read() -> str | None:
    """The next line without its end; None at the end of the input, or on Ctrl-C at the prompt."""
    if sys.stdin.isatty():
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    if not line:
        if sys.stdin.isatty():
            sys.stdout.write("\n")
        return None
    return line.rstrip("\n")

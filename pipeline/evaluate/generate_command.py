"""`pipeline generate`: one prompt on a terminal, or a file of prompts in batches."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.evaluate.generate import Continuation, GenerationSettings, continue_prompts, reads_with_encoder
from pipeline.evaluate.streaming import stream_text, tell_rate
from pipeline.model.directory import load_text_model


def generate_command(
    model_dir: Path,
    prompt: str | None = None,
    prompts_file: Path | None = None,
    chat: bool = False,
    as_json: bool = False,
    **settings: Any,
) -> None:
    """Continue a prompt, streamed to standard output after the prompt itself; or the prompts of `prompts_file` in
    batches, printed in order, each after a line of dashes with its number. chat: the prompt is a message for the
    model's chat template. as_json: a line {"prompt", "text", "tokens", "ended"} for each prompt instead (`Continuation`
    says what they mean). settings: fields of GenerationSettings. Tokens a second go to standard error.

    Raises: DataError for a folder that holds no usable model, an unreadable prompts file, or no prompt at all.
    """
    chosen = GenerationSettings(**settings)
    if prompts_file is None and prompt is None:
        raise DataError("generate: no prompt; give --prompt TEXT or --prompts-file FILE, or --chat for a conversation")
    prompts = read_prompts(prompts_file) if prompts_file else []
    model, tokenizer = load_text_model(model_dir, device=str(find_device(ALONE).torch_device))
    if prompt is not None and not as_json:
        stream_text(model, tokenizer, prompt, chosen, chat)
    elif prompt is not None:
        prompts = [prompt, *prompts]
    if not prompts:
        return
    started = time.monotonic()
    made = continue_prompts(model, tokenizer, prompts, chosen, chat)
    seconds = time.monotonic() - started
    for number, (asked, found) in enumerate(zip(prompts, made, strict=True), start=1):
        opening = "" if chat or reads_with_encoder(model) else asked  # of what is continued, not of what is answered
        sys.stdout.write(_line(asked, found) if as_json else f"--- {number}\n{opening}{found.text}\n")
    sys.stdout.flush()
    tell_rate(sum(found.tokens for found in made), seconds)


def _line(prompt: str, made: Continuation) -> str:
    said = {"prompt": prompt, "text": made.text, "tokens": made.tokens, "ended": made.ended}
    return json.dumps(said, ensure_ascii=False) + "\n"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one a line, empty lines left out; of a .jsonl file the field `prompt` of each line.

    Raises: DataError naming the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give a file with one prompt a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}); give one prompt a line") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{path}: holds no prompt; give one prompt a line")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}:{number}") for number, line in numbered]


def _prompt_of(line: str, place: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise DataError(f'{place}: has no text under "prompt"; a line is {{"prompt": "…"}}')
    return str(found["prompt"])

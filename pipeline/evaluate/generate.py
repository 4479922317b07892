"""Text from a model: continuations of prompts, in batches or streamed to a terminal.

`generate_text` is what other stages call; `generate_command` is what `pipeline generate` calls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.model.directory import load_causal_model
from pipeline.progress import log, progress


@dataclass(frozen=True)
class GenerationSettings:
    """How text is continued. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off; batch: prompts
    worked on at once (sampled text depends on it, greedy text but for rounding does not)."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 1234
    batch: int = 16

    def __post_init__(self) -> None:
        bounds = {
            "max-tokens": (self.max_tokens, 1, 1_000_000),
            "temperature": (self.temperature, 0, 100),
            "top-k": (self.top_k, 0, 1_000_000),
            "top-p": (self.top_p, 1e-6, 1),
            "batch": (self.batch, 1, 65_536),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise DataError(f"{name}={value}: must lie between {low} and {high}")


def generate_text(
    model: Any, tokenizer: Any, prompts: Sequence[str], settings: GenerationSettings, chat: bool = False
) -> list[str]:
    """Continue each prompt; returns the continuations alone, in the order of the prompts, special tokens left out.

    model, tokenizer: as `load_causal_model` gives them. chat: each prompt is a user's message, put in the model's
    chat template. Prompts longer than the context less max_tokens are cut from the left, and a line says how many.
    Deterministic for equal arguments; the global random state is left as it was.
    Raises: DataError when max_tokens leaves no room for a prompt, or chat is asked of a model without a template.
    """
    encoded = _fit([encode_prompt(tokenizer, prompt, chat) for prompt in prompts], model, settings.max_tokens)
    # Prompts of like length stand in one batch: little padding.
    order = sorted(range(len(encoded)), key=lambda number: (-len(encoded[number]), number))
    texts = [""] * len(encoded)
    with progress("generate", len(encoded), " prompts") as bar:
        for group in (order[first : first + settings.batch] for first in range(0, len(order), settings.batch)):
            rows = generate_ids(model, tokenizer, [encoded[number] for number in group], settings)
            for number, row in zip(group, rows, strict=True):
                texts[number] = tokenizer.decode(row, skip_special_tokens=True)
            bar.advance(len(group))
    return texts


def generate_command(
    model_dir: Path, prompt: str | None = None, prompts_file: Path | None = None, chat: bool = False, **settings: Any
) -> None:
    """`pipeline generate`: continue a prompt, streamed to standard output after the prompt itself; or the prompts of
    `prompts_file` (one a line) in batches, printed in order, each after a line of dashes with its number. chat: the
    prompt is a message for the model's chat template. settings: fields of GenerationSettings. Tokens a second go to
    standard error.

    Raises: DataError for a folder that holds no usable model, an unreadable prompts file, or no prompt at all.
    """
    chosen = GenerationSettings(**settings)
    if prompts_file is None and prompt is None:
        raise DataError("generate: no prompt; give --prompt TEXT or --prompts-file FILE, or --chat for a conversation")
    prompts = read_prompts(prompts_file) if prompts_file else []
    model, tokenizer = load_causal_model(model_dir, device=str(find_device(ALONE).torch_device))
    if prompt is not None:
        stream_text(model, tokenizer, prompt, chosen, chat)
    for number, (asked, text) in enumerate(
        zip(prompts, generate_text(model, tokenizer, prompts, chosen, chat), strict=True), start=1
    ):
        sys.stdout.write(f"--- {number}\n{'' if chat else asked}{text}\n")
    sys.stdout.flush()


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines are left out. Raises: DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); give one prompt a line") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path}: holds no prompt; give one prompt a line")
    return found


def stream_text(model: Any, tokenizer: Any, prompt: str, settings: GenerationSettings, chat: bool = False) -> str:
    """Print the continuation as it is made; returns it."""
    ids = _fit([encode_prompt(tokenizer, prompt, chat)], model, settings.max_tokens)[0]
    if not chat:
        sys.stdout.write(prompt)
        sys.stdout.flush()
    return stream_ids(model, tokenizer, ids, settings)


def stream_ids(model: Any, tokenizer: Any, ids: list[int], settings: GenerationSettings) -> str:
    """Continue `ids`, printing text as it is made and the rate at the end; returns the text. Ctrl-C ends it early."""
    from transformers import TextStreamer

    class Counting(TextStreamer):  # type: ignore[misc]
        """Prints whole characters only, counts tokens, keeps the text."""

        text, tokens = "", -1  # the first thing put is the prompt

        def put(self, value: Any) -> None:
            self.tokens += 1
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            sys.stdout.write(text + ("\n" if stream_end else ""))
            sys.stdout.flush()

    streamer = Counting(tokenizer, skip_prompt=True, skip_special_tokens=True)
    started = time.monotonic()
    try:
        generate_ids(model, tokenizer, [ids], settings, streamer)
    except KeyboardInterrupt:
        streamer.end()
    seconds = max(time.monotonic() - started, 1e-9)
    count = max(streamer.tokens, 0)
    log.info(f"{count} tokens, {count / seconds:.1f} tokens/s")
    return str(streamer.text)


def encode_prompt(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """Ids of a prompt; an empty one becomes the token that begins a document."""
    if chat:
        return encode_messages(tokenizer, [{"role": "user", "content": prompt}])
    ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise DataError("generate: the prompt is empty and this model has no token to begin with; give a prompt")
    return ids or [start]


def encode_messages(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Ids of a conversation in the model's chat template, up to where the model's answer begins. Raises: DataError."""
    if not tokenizer.chat_template:
        raise DataError(
            "generate: this model has no chat template; use a fine-tuned one (--task NAME), or leave --chat out"
        )
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def context_length(model: Any) -> int | None:
    """Longest text the model was made for, in tokens; None where its config does not say."""
    config = model.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(found) if found else None


def generate_ids(
    model: Any, tokenizer: Any, rows: list[list[int]], settings: GenerationSettings, streamer: Any = None
) -> list[list[int]]:
    """Continue rows of ids as one left-padded batch; returns the new ids of each row, up to its first end token."""
    import torch

    device, longest = model.device, max(len(row) for row in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if settings.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
        }
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        out = model.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=settings.max_tokens,
            pad_token_id=pad,
            streamer=streamer,
            **sampling,
        )
    ends = set(_end_ids(model, tokenizer))
    return [list(_until(row, ends)) for row in out[:, longest:].tolist()]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: the model's own, else the tokenizer's."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def _until(row: list[int], ends: set[int]) -> Iterator[int]:
    for token in row:
        if token in ends:
            return
        yield token


def _fit(rows: list[list[int]], model: Any, max_tokens: int) -> list[list[int]]:
    """Cut prompts from the left so that prompt and answer fit the context. Raises: DataError when none can."""
    context = context_length(model)
    if context is None:
        return rows
    room = context - max_tokens
    if room < 1:
        raise DataError(f"max-tokens={max_tokens}: the model's context is {context} tokens; ask for fewer")
    cut = sum(len(row) > room for row in rows)
    if cut:
        log.warning(
            f"{cut} of {len(rows)} prompts: cut from the left to {room} tokens (context {context} less {max_tokens})"
        )
    return [row[-room:] for row in rows]

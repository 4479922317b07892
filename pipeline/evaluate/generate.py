"""Text from a model: continuations of prompts, in batches. Causal models continue a prompt, encoder–decoder models
answer it.

`generate_text` is what other stages call; `pipeline generate` is generate_command.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import DataError
from pipeline.progress import log, progress

Prompt = str | Sequence[dict[str, str]]  # a text, or the turns of a conversation (role, content)


@dataclass(frozen=True)
class GenerationSettings:
    """How text is continued. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off; beams above 1:
    beam search, which draws nothing; stop: text before the first of these strings is the answer; batch: prompts worked
    on at once (sampled text depends on it, other text but for rounding does not)."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 1234
    batch: int = 16
    beams: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = {
            "max-tokens": (self.max_tokens, 1, 1_000_000),
            "temperature": (self.temperature, 0, 100),
            "top-k": (self.top_k, 0, 1_000_000),
            "top-p": (self.top_p, 1e-6, 1),
            "batch": (self.batch, 1, 65_536),
            "beams": (self.beams, 1, 1_024),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise DataError(f"{name}={value}: must lie between {low} and {high}")
        if "" in self.stop:
            raise DataError("stop: an empty string would end every text at once; give at least one character")


@dataclass(frozen=True)
class Continuation:
    """What a model wrote. tokens: their number, the one that ends the text not counted; ended: by an `end` token, by a
    `stop` string, or at max_tokens (`length`)."""

    text: str
    tokens: int
    ended: str


def generate_text(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], settings: GenerationSettings, chat: bool = False
) -> list[str]:
    """Continue each prompt; returns the texts alone. As `continue_prompts`."""
    return [made.text for made in continue_prompts(model, tokenizer, prompts, settings, chat)]


def continue_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], settings: GenerationSettings, chat: bool = False
) -> list[Continuation]:
    """Continue each prompt; returns the continuations alone, in the order of the prompts, special tokens left out.

    model, tokenizer: as `load_causal_model` or `load_text_model` gives them. chat: each prompt is a user's message, or
    a conversation up to the answer that is asked for, put in the model's chat template. Prompts longer than the context
    less max_tokens are cut from the left (those of an encoder from the right), and a line says how many.
    Deterministic for equal arguments; the global random state is left as it was.
    Raises: DataError when max_tokens leaves no room for a prompt, or chat is asked of a model without a template.
    """
    encoded = fit_prompts([encode_prompt(tokenizer, prompt, chat, model) for prompt in prompts], model, settings)
    # Prompts of like length stand in one batch: little padding.
    order = sorted(range(len(encoded)), key=lambda number: (-len(encoded[number]), number))
    made: dict[int, Continuation] = {}
    with progress("generate", len(encoded), " prompts") as bar:
        for group in (order[first : first + settings.batch] for first in range(0, len(order), settings.batch)):
            rows = generate_ids(model, tokenizer, [encoded[number] for number in group], settings)
            made |= {number: _continuation(tokenizer, row, settings) for number, row in zip(group, rows, strict=True)}
            bar.advance(len(group))
    return [made[number] for number in range(len(encoded))]


def _continuation(tokenizer: Any, row: list[int], settings: GenerationSettings) -> Continuation:
    text = tokenizer.decode(row, skip_special_tokens=True)
    end = stop_of(text, settings.stop)
    ended = "stop" if end is not None else "length" if len(row) >= settings.max_tokens else "end"
    return Continuation(text[:end], len(row), ended)


def stop_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins; None where there is none."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool, model: Any = None) -> list[int]:
    """Ids of a prompt; an empty one becomes the token that begins a document. model: an encoder–decoder one reads a
    prompt with the special tokens of its own tokenizer."""
    if chat or not isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return encode_messages(tokenizer, list(turns))
    ids = list(tokenizer(prompt, add_special_tokens=reads_with_encoder(model))["input_ids"])
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


def reads_with_encoder(model: Any) -> bool:
    """Whether a model is an encoder–decoder one."""
    return bool(model is not None and getattr(model.config, "is_encoder_decoder", False))


def context_length(model: Any) -> int | None:
    """Longest text the model was made for, in tokens; None where its config does not say."""
    config = model.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(found) if found else None


def generate_ids(
    model: Any, tokenizer: Any, rows: list[list[int]], settings: GenerationSettings, streamer: Any = None
) -> list[list[int]]:
    """Continue rows of ids as one batch, padded on the left (for an encoder on the right); returns the new ids of each
    row, up to its first end token."""
    import torch

    device, longest = model.device, max(len(row) for row in rows)
    encoder = reads_with_encoder(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if encoder else slice(longest - len(row), longest)
        tokens[number, place] = torch.tensor(row)
        mask[number, place] = 1
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        out = model.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=settings.max_tokens,
            pad_token_id=pad,
            streamer=streamer,
            **_search(settings),
            **({"stop_strings": list(settings.stop), "tokenizer": tokenizer} if settings.stop else {}),
        )
    ends = set(_end_ids(model, tokenizer))
    if settings.stop:
        ends.add(pad)  # what stands behind a stop string while other rows go on
    return [list(_until(row, ends)) for row in out[:, 1 if encoder else longest :].tolist()]


def _search(settings: GenerationSettings) -> dict[str, Any]:
    """Greedy, drawn, or by beams, in the words of `transformers`."""
    if settings.temperature == 0 or settings.beams > 1:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "num_beams": settings.beams}
    return {"do_sample": True, **{name: asdict(settings)[name] for name in ("temperature", "top_k", "top_p")}}


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


def fit_prompts(rows: list[list[int]], model: Any, settings: GenerationSettings) -> list[list[int]]:
    """Cut prompts so that prompt and answer fit the context. Raises: DataError when none can."""
    if reads_with_encoder(model):
        return _fit_encoder(rows, getattr(model.config, "max_position_embeddings", None), settings.max_tokens)
    context = context_length(model)
    if context is None:
        return rows
    room = context - settings.max_tokens
    if room < 1:
        raise DataError(f"max-tokens={settings.max_tokens}: the model's context is {context} tokens; ask for fewer")
    cut = sum(len(row) > room for row in rows)
    if cut:
        log.warning(
            f"{cut} of {len(rows)} prompts: cut from the left to {room} tokens "
            f"(context {context} less {settings.max_tokens})"
        )
    return [row[-room:] for row in rows]


def _fit_encoder(rows: list[list[int]], context: int | None, max_tokens: int) -> list[list[int]]:
    """Prompt and answer have positions of their own; the prompt's last token, its end mark, stays."""
    if context is None:  # T5: positions are relative
        return rows
    if max_tokens >= context:
        raise DataError(f"max-tokens={max_tokens}: the model writes at most {context - 1} tokens; ask for fewer")
    if cut := sum(len(row) > context for row in rows):
        log.warning(f"{cut} of {len(rows)} prompts: cut from the right to {context} tokens, all that the model reads")
    return [row if len(row) <= context else [*row[: context - 1], row[-1]] for row in rows]

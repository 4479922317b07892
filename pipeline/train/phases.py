"""What pretraining reads, and in which phases: the plan of a whole run as a pure function of recipe and tokens.

A phase is a stretch of steps of one batch size, window length and mix. It begins with the first step after its
`from_tokens`. Sources go on where they were: a later phase takes each source's next windows, so that nothing is lost or
repeated; only where `seq_len` changes are the windows others, and each source begins a pass of its own (what the pass
before had not come to is seen in that one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.mix import mix_weights
from pipeline.errors import RecipeError
from pipeline.files import fingerprint
from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import Stream
from pipeline.tokens.windows import PackedWindows


@dataclass(frozen=True)
class PlannedPhase:
    """first: its first step; end: the step after its last; tokens: before it; fingerprint: of it and all before;
    new: what differs from the phase before."""

    first: int
    end: int
    tokens: int
    global_batch: int
    seq_len: int
    stream: Stream
    fingerprint: str
    new: dict[str, Any]

    def tokens_at(self, step: int) -> int:
        """Tokens that were trained on in the first `step` steps; no earlier step than its first."""
        return self.tokens + (step - self.first) * self.global_batch * self.seq_len


def open_tokens(recipe: Recipe, folder: Path) -> TokenData:
    """The tokens to train on. folder: of the stage, where is remembered which shards were found good.

    Raises: DataError when the index is missing or damaged.
    """
    settings = recipe.pretrain
    place: str | Path = settings.tokens_from or recipe.workdir / "tokens"
    return TokenData.open(
        place,
        settings.verify,
        folder / "verified",
        Path(settings.cache or Path.home() / ".cache" / "headwater").expanduser(),
        settings.cache_bytes,
    )


def plan_phases(recipe: Recipe, data: TokenData) -> list[PlannedPhase]:
    """All phases of a recipe, the first without a change. Raises: DataError, RecipeError."""
    settings = recipe.pretrain
    batch, seq_len = settings.global_batch, settings.seq_len
    weights = mix_weights(recipe, {name: data.tokens("train", name) for name in data.sources("train")})
    _check(recipe, data)
    base = settings.settings() | {"phases": []}
    found: list[PlannedPhase] = []
    first = tokens = 0
    begin: dict[str, int] = {}
    ends = [*(phase.from_tokens for phase in settings.phases), settings.tokens]
    for number, end_tokens in enumerate(ends):
        new: dict[str, Any] = {}
        if number:
            phase = settings.phases[number - 1]
            new = phase.model_dump(exclude_none=True)
            last = found[-1]
            first, tokens = last.end, last.tokens_at(last.end)
            begin = last.stream.used((last.end - last.first) * last.global_batch)
            if phase.seq_len not in (None, seq_len):  # whole passes: the next one begins
                begin = {name: _passes(begin[name], last.stream.counts[name]) for name in begin}
            batch, seq_len = phase.global_batch or batch, phase.seq_len or seq_len
            weights = weights | (phase.weights or {})
        stretch = math.ceil(settings.shuffle_tokens / seq_len)
        packed = _packed(recipe, data, seq_len)
        stream = Stream(data, seq_len, recipe.seed, weights, stretch, packed=packed)
        if number and found[-1].seq_len != seq_len:
            begin = {name: passes * stream.counts[name] for name, passes in begin.items()}
        if number:
            stream = Stream(data, seq_len, recipe.seed, weights, stretch, begin, packed)
        end = first + max(0, math.ceil((end_tokens - tokens) / (batch * seq_len)))
        parts = (
            [stream.fingerprint, batch] if number else [stream.fingerprint, recipe.model.settings(), base, recipe.seed]
        )
        mark = fingerprint([found[-1].fingerprint, found[-1].end, *parts] if number else parts)
        found.append(PlannedPhase(first, end, tokens, batch, seq_len, stream, mark, new))
    return found


def _packed(recipe: Recipe, data: TokenData, seq_len: int) -> dict[str, PackedWindows] | None:
    """The windows of packed documents, where the recipe wants them; laid out by the first who asks."""
    if recipe.pretrain.packing != "best_fit":
        return None
    from pipeline.tokens.packing import pack  # numba, only where it is needed

    return pack(data, seq_len, recipe.workdir / "checkpoints" / "packing")


def _passes(used: int, count: int) -> int:
    """Passes over a source that have been begun."""
    return -(-used // count)


def _check(recipe: Recipe, data: TokenData) -> None:
    """What only the tokens can tell. Raises: RecipeError."""
    settings = recipe.pretrain
    if wrong := settings.wrong_weights(data.sources("train")):
        raise RecipeError(wrong)
    if settings.documents == "mask" and recipe.model.architecture != "transformer":
        raise RecipeError(f"pretrain.documents=mask needs attention; model.architecture is {recipe.model.architecture}")

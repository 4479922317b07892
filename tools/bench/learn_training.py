"""One training of `learn`, in a process of its own: learn_training.py NAME TOLD POINTS KEY=VALUE…

NAME is a recipe in learn/. TOLD takes, as JSON, what `run` returns.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.cluster.ranks import ALONE, Ranks, read_ranks
from pipeline.config import load_recipe
from pipeline.errors import PipelineError, Stopped
from pipeline.files import write_json
from pipeline.model.build import rows_of_embedding
from pipeline.progress import log, start_logging
from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData
from pipeline.tracking import Tracker
from pipeline.train.loop import train
from pipeline.train.phases import PlannedPhase, open_tokens, plan_phases
from pipeline.train.pretrain import PretrainTask
from pipeline.train.task import Batch, Phase, ReduceSum

HERE = Path(__file__).parent
Plan = Sequence[PlannedPhase]


@dataclass
class Record:
    """The clock of a training, over all its phases, and what was measured. It begins with the first step, which
    compiles, and stands still while held-out text is measured."""

    began: float = 0.0
    apart: float = 0.0  # seconds of measuring
    points: list[tuple[int, float, float]] = field(default_factory=list)
    bits_per_byte: float = math.nan


class Watched(PretrainTask):
    """A phase of pretraining as it is, beside that clock. What is measured is the held-out text's first
    `validation_windows` windows, and after the last step all of it too (whole)."""

    def __init__(
        self, name: str, record: Record, whole: bool, recipe: Recipe, data: TokenData, plan: Plan, number: int
    ) -> None:
        super().__init__(recipe, data, plan, number)
        if name == "gpt2":
            from learn_gpt2 import Gpt2

            self.model = Gpt2(recipe.model, rows_of_embedding(recipe.model, data.vocab_size), recipe.seed)
        self._record, self._whole = record, whole

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        self._record.began = self._record.began or time.perf_counter()
        return super().loss_sum(model, batch)

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        record, began = self._record, time.perf_counter()
        seconds = began - record.began - record.apart
        step = int(model.global_steps)  # type: ignore[arg-type]  # DeepSpeed's
        found = super().validate(model, ranks, reduce_sum)
        record.points.append((self.tokens_at(step), seconds, found["bits_per_byte"]))
        if self._whole and step == self.all_steps:
            self.held_out = len(self.windows)
            record.bits_per_byte = super().validate(model, ranks, reduce_sum)["bits_per_byte"]
        record.apart += time.perf_counter() - began
        return found


def main() -> int:
    name, told, points = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    start_logging()
    try:
        found = run(name, read_recipe(name, sys.argv[4:]), read_ranks() or ALONE, points)
    except (PipelineError, Stopped) as error:
        log.error("%s", error)
        return error.status
    if found:
        write_json(told, found)
    return 0


def read_recipe(name: str, words: Sequence[str]) -> Recipe:
    """A contender's recipe with other settings. Its own phases keep their shares of the budget, whatever that is."""
    path = str(HERE / "learn" / f"{name}.yaml")
    if any(word.startswith("pretrain.phases=") for word in words):
        return load_recipe(path, words)
    usual, recipe = load_recipe(path), load_recipe(path, [*words, "pretrain.phases=[]"])
    share = recipe.pretrain.tokens / usual.pretrain.tokens
    phases = tuple(
        phase.model_copy(update={"from_tokens": max(1, round(phase.from_tokens * share))})
        for phase in usual.pretrain.phases
    )
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"phases": phases})})


def run(name: str, recipe: Recipe, ranks: Ranks, points: int) -> dict[str, Any]:
    """Train as the recipe says, measuring `points` times, and where a phase ends; 0: for the seconds alone.

    Returns on rank 0, else {}: `points`, [tokens, seconds, bits a byte] each; `bits_per_byte` of all that is held out,
    after `tokens` and `seconds`; `parameters`.
    """
    record = Record()
    with open_tokens(recipe, recipe.workdir) as data:
        plan = plan_phases(recipe, data)
        interval = math.ceil(plan[-1].end / max(1, points))
        settings = recipe.pretrain.model_copy(update={"validation_interval": interval})
        make = partial(Watched, name, record, points > 0, recipe, data, plan)
        phases = [Phase(each.first, partial(make, number), each.new) for number, each in enumerate(plan)]
        train(phases, settings, recipe.workdir / "checkpoints", recipe.seed, ranks, Tracker())
        parameters = sum(weight.numel() for weight in make(0).model.parameters())
    if not ranks.first:
        return {}
    tokens, seconds, _ = record.points[-1]
    return {
        "points": record.points,
        "bits_per_byte": record.bits_per_byte,
        "tokens": tokens,
        "seconds": seconds,
        "parameters": parameters,
    }


if __name__ == "__main__":
    sys.exit(main())

"""The `grid:` of a fine-tuning task: values to try, in every combination."""

from __future__ import annotations

import itertools
import math

from pydantic import PositiveFloat, PositiveInt, model_validator

from pipeline.settings.section import Section

MOST_COMBINATIONS = 32  # each is a training, and keeps a model of its own


class GridSettings(Section):
    """At least one list. Every combination is trained, as `finetune/<task>@<values>`; the best is the task's model."""

    learning_rate: tuple[PositiveFloat, ...] = ()
    """In place of optimizer.learning_rate."""
    epochs: tuple[PositiveFloat, ...] = ()
    rank: tuple[PositiveInt, ...] = ()
    """In place of lora.rank; alpha stays, so that the adapters' part is scaled by alpha / rank."""

    def axes(self) -> dict[str, tuple[float, ...]]:
        """Setting → the values to try, where any are given."""
        return {name: values for name in type(self).model_fields if (values := getattr(self, name))}

    def combinations(self) -> dict[str, dict[str, float]]:
        """Name (`learning_rate=0.001,rank=8`) → the values, in the order of the lists, the last changing first."""
        axes = self.axes()
        rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        return {",".join(f"{name}={value:.12g}" for name, value in row.items()): row for row in rows}

    @model_validator(mode="after")
    def _can_be_tried(self) -> GridSettings:
        axes = self.axes()
        if not axes:
            raise ValueError(f"grid: names nothing to try; give lists of {', '.join(type(self).model_fields)}")
        for name, values in axes.items():
            if len({f"{value:.12g}" for value in values}) < len(values):
                raise ValueError(f"grid.{name}: the same value stands twice in {list(values)}")
        if (asked := math.prod(map(len, axes.values()))) > MOST_COMBINATIONS:
            sizes = " × ".join(f"{len(values)} {name}" for name, values in axes.items())
            raise ValueError(
                f"grid: {asked} combinations ({sizes}) are more than {MOST_COMBINATIONS}; try fewer values"
            )
        return self

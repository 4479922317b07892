"""What is done about steps that go wrong: a skip of all ranks together, or a way back and around the data.

**Skip.** A loss or gradient that is not finite on any rank: no rank applies the step; its data counts as seen.
DeepSpeed decides this for ZeRO-1 to 3 by the norm of the gradient over all ranks, for every precision;
`skip_bad_updates` does the same where there is no ZeRO. A loss that is not finite makes the gradient of its rank NaN
(steps.py), so that one check serves both and no rank needs to ask the others.

**Spike.** Losses far above the median of the recent ones, several in a row; or several skips in a row. Training goes
back to the last checkpoint from before and passes over the data around the spike, as with PaLM (Chowdhery et al. 2022,
section 5.1: back by about 100 steps, over 200 to 500 batches "seen before and during the spike"; the same data at
another state of the weights does no harm) and OPT-175B (Zhang et al. 2022, section 2.5: restarts from checkpoints from
before a divergence). The scale is the median and MAD (Rousseeuw & Croux 1993), which the outliers do not move; losses
that are too high do not enter it.

All decisions are functions of what all ranks know alike; a resumed run makes the same ones. The state is part of each
checkpoint.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.recipe import LossPolicy

CURE = "lower optimizer.learning_rate, raise schedule.warmup, or set precision=fp32"
FLAT = 1e-12  # a MAD below this share of the median is that of a constant


class Spike(Exception):
    """Training must go back. first: the first step that went wrong (from 0); last: the last that was done; values: for
    the audit."""

    def __init__(self, first: int, last: int, **values: Any) -> None:
        super().__init__(f"steps {first} to {last} went wrong")
        self.first, self.last, self.values = first, last, values


@dataclass
class PolicyState:
    """What a checkpoint keeps. passed_over: data windows that are left out; skipped: steps that changed no weight;
    recent: losses that give the scale; high, bad: steps in a row until now that are too high, that were skipped."""

    passed_over: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    recent: list[float] = field(default_factory=list)
    high: int = 0
    bad: int = 0


class Watch:
    """The loss policy of one run; the same on every rank."""

    def __init__(self, settings: LossPolicy) -> None:
        self.settings, self.state = settings, PolicyState()

    def window(self, step: int) -> int:
        """The data window of a step: as many as there were steps before it and windows passed over."""
        return window_of(step, self.state.passed_over)

    @property
    def suspicious(self) -> bool:
        """Whether the last steps may be the beginning of a spike: what they made is not to be saved as good."""
        return bool(self.state.high or self.state.bad)

    def limit(self) -> float:
        """The highest loss that is no outlier; infinite as long as there are too few steps to tell."""
        recent, settings = self.state.recent, self.settings
        if len(recent) < settings.least_steps:
            return math.inf
        median = statistics.median(recent)
        deviation = statistics.median(abs(loss - median) for loss in recent)
        return median + max(settings.deviations * deviation, settings.rise, FLAT * abs(median))

    def observe(self, step: int, loss: float, applied: bool) -> None:
        """Take in a step's mean loss, and whether it changed the weights. Steps come in order.

        Raises: Spike when it completes one; RecipeError for a loss that is not finite when the policy is off.
        """
        settings, state = self.settings, self.state
        if not settings.enabled:
            if not math.isfinite(loss):
                raise RecipeError(f"step {step + 1}: the loss is {loss}, and loss_policy.enabled=no; {CURE}")
            return
        if not applied or not math.isfinite(loss):
            state.skipped.append(step)
            state.bad += 1
            if state.bad >= settings.skips_in_a_row:
                raise Spike(step - state.bad + 1, step, skipped=state.bad)
            return
        limit = self.limit()
        state.bad = 0
        if loss <= limit:
            state.high = 0
            state.recent = [*state.recent, loss][-settings.window :]
            return
        state.high += 1
        if state.high >= settings.spike_steps:
            median = statistics.median(state.recent)
            raise Spike(step - state.high + 1, step, loss=loss, limit=limit, median=median)

    def check(self, spike: Spike) -> None:
        """Raises: RecipeError when there were as many rollbacks as may be."""
        settings = self.settings
        if self.state.rollbacks >= settings.most_rollbacks:
            raise RecipeError(
                f"step {spike.first + 1}: {_what(spike)}, after {self.state.rollbacks} rollbacks "
                f"(loss_policy.most_rollbacks); {CURE}"
            )

    def good(self, spike: Spike, steps: Sequence[int]) -> int:
        """Which of the checkpoints, by their steps, is from before the spike and what led to it: the newest that is
        `margin` steps older, else the newest that is older.

        Raises: RecipeError when there is none.
        """
        for margin in (self.settings.margin, 1):
            before = [step for step in steps if step <= spike.first - margin]
            if before:
                return max(before)
        raise self.no_way_back(spike)

    def around(self, spike: Spike, saved: int, loaded: dict[str, Any]) -> list[int]:
        """Go on from the checkpoint after `saved` steps with the state that it holds, but past the data of the spike.

        Returns the windows that are newly passed over.
        """
        first = max(saved, spike.first - self.settings.margin)
        windows = [self.window(step) for step in range(first, spike.last + 1)]
        passed, rollbacks = self.state.passed_over, self.state.rollbacks
        self.restore(loaded)
        self.state.passed_over = sorted({*passed, *windows})
        self.state.rollbacks = rollbacks + 1
        return windows

    def no_way_back(self, spike: Spike) -> RecipeError:
        """The error of a spike with no checkpoint from before it."""
        return RecipeError(
            f"step {spike.first + 1}: {_what(spike)}, and no checkpoint from before is there; {CURE}, "
            "or save more often (checkpoint_steps)"
        )

    def saved(self) -> dict[str, Any]:
        """The state, as JSON types."""
        return asdict(self.state)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up a state that `saved` gave; an empty one is that of a new run."""
        values: dict[str, Any] = {name: list(v) if isinstance(v, list) else v for name, v in saved.items()}
        self.state = PolicyState(**values)

    def told(self) -> dict[str, Any]:
        """What final.json says: equal however often the run was stopped and continued."""
        state = self.state
        return {
            "skipped_steps": state.skipped,
            "windows_passed_over": state.passed_over,
            "rollbacks": state.rollbacks,
        }


def window_of(step: int, passed_over: Iterable[int]) -> int:
    """The data window of a step when these windows are left out: 5 is 7 without 3 and 6."""
    window = step
    for passed in sorted(passed_over):
        if passed <= window:
            window += 1
    return window


def _what(spike: Spike) -> str:
    if "skipped" in spike.values:
        return f"{spike.values['skipped']} steps in a row had a loss or gradient that is not finite"
    return f"the loss rose to {spike.values['loss']:.4g} from about {spike.values['median']:.4g}"


class GradientWatch:
    """Knows whether this rank's own gradients were finite, before they are mixed with those of others.

    Looks at the vectors (norms, biases) first: a gradient that is not finite comes down to those of the layers below,
    and they cost nothing. A fault in one matrix's own gradient is not seen there, though the step is skipped; after
    such a step the matrices are looked at too, and the next one names its rank.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._matrices: list[nn.Parameter] = []
        for weight in model.parameters():
            if len(getattr(weight, "ds_shape", weight.shape)) > 1:  # ZeRO-3 has taken it apart, and left its shape
                self._matrices.append(weight)
            else:
                self._watch([weight])

    def _watch(self, weights: list[nn.Parameter]) -> None:
        for weight in weights:
            if weight.requires_grad:
                weight.register_hook(self._add)  # type: ignore[no-untyped-call]

    def look_closer(self) -> None:
        """From now on at the matrices too."""
        self._watch(self._matrices)
        self._matrices = []

    def _add(self, gradient: Tensor) -> None:
        self._sum += gradient.sum(dtype=torch.float32)

    def reset(self) -> None:
        """A new step begins."""
        self._sum.zero_()

    def finite(self) -> bool:
        """Of this step until now. Waits for the device."""
        return math.isfinite(float(self._sum))


def skip_bad_updates(engine: Any) -> None:
    """Give an optimizer without ZeRO what ZeRO's have: `overflow`, and no update when the gradient is not finite.

    Every rank has the same gradient there, and decides alike.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "overflow"):
        return
    update = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
        optimizer.overflow = not bool(torch.isfinite(norms).all())
        return None if optimizer.overflow else update(*args, **kwargs)

    optimizer.overflow = False
    optimizer.step = step

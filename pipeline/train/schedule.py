"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from pipeline.recipe import ScheduleSettings


def learning_rate_factor(settings: ScheduleSettings, step: int, steps: int) -> float:
    """Share of the peak learning rate in step `step` (0 … steps-1) of `steps`.

    Rises linearly over the first `warmup` of the steps, never from 0 itself: step 0 learns too. Then `cosine`
    (Loshchilov & Hutter 2017) falls towards `final`, which would be reached one step after the last; `wsd` (Hu et al.
    2024) stays at 1 and falls linearly, likewise, over the last `decay` of the steps; `constant` stays at 1.
    """
    warmup = max(1, round(settings.warmup * steps)) if settings.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    if settings.name == "wsd":
        falling = min(round(settings.decay * steps), steps - warmup)
        share = max(0.0, (step - (steps - falling) + 1) / (falling + 1))
        return 1.0 - (1.0 - settings.final) * share
    share = (step - warmup + 1) / (steps - warmup + 1)
    return settings.final + (1.0 - settings.final) * 0.5 * (1.0 + math.cos(math.pi * share))

"""Which validation was the best, and whether to stop waiting for a better one (early stopping; Prechelt 1998).

Both are functions of the held-out numbers so far, which a resumed run reads again: it decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

LOWER_IS_BETTER = ("loss", "rmse")

Validations = Mapping[int, Mapping[str, float]]


@runtime_checkable
class Judged(Protocol):
    """A task of which the best weights are kept. best_by: the held-out number that decides, empty: the last are kept;
    patience: validations without a better one after which it ends, 0: it goes on to its last step."""

    best_by: str
    patience: int


def best_step(task: object, validations: Validations) -> int | None:
    """The step of the best validation, the first of equals; None where the task does not ask, or nothing is known."""
    if not isinstance(task, Judged) or not task.best_by:
        return None
    sign = 1.0 if task.best_by in LOWER_IS_BETTER else -1.0
    known = {step: sign * found[task.best_by] for step, found in validations.items()}
    finite = [(number, step) for step, number in known.items() if math.isfinite(number)]
    return min(finite)[1] if finite else None


def has_waited_enough(task: object, validations: Validations) -> bool:
    """Whether the last `patience` validations were no better than one before."""
    best = best_step(task, validations)
    if best is None or not isinstance(task, Judged) or not task.patience:
        return False
    return sum(step > best for step in validations) >= task.patience

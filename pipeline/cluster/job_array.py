"""Which of how many tasks this process does: `I/N` as typed, or read from Slurm's job array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import EnvironmentFault, RecipeError

ARRAY = "array"  # in place of I/N: what Slurm says
Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Task `number` (from 0) of `count`."""

    number: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This task's items: every `count`-th, so that each task gets some of every source."""
        return items[self.number :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def is_share(text: str) -> bool:
    """Whether `--task TEXT` asks for a share, where it could be a name too."""
    return text == ARRAY or "/" in text


def read_share(text: str, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that `--task TEXT` asks for: `I/N`, or `array` for the element of Slurm's job array that this is.

    Raises: RecipeError when the text is no such thing, EnvironmentFault when there is no array, or one with holes.
    """
    if text == ARRAY:
        return _from_slurm(environment)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise RecipeError(f"--task {text}: write I/N, such as 0/16 for the first of sixteen, or `{ARRAY}`")
    number, count = int(found[1]), int(found[2])
    if number >= count:
        raise RecipeError(
            f"--task {text}: tasks are counted from 0; of {count} the last is {max(count - 1, 0)}/{count}"
        )
    return Share(number, count)


def _from_slurm(environment: Mapping[str, str]) -> Share:
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT")]
    missing = [name for name in names if not environment.get(name, "").isdecimal()]
    if missing:
        raise EnvironmentFault(
            f"--task {ARRAY}: {missing[0]} is not set; it is for jobs of `sbatch --array=0-N`, elsewhere write I/N"
        )
    number, first, last, step, count = (int(environment[name]) for name in names)
    if step < 1 or (last - first) // step + 1 != count:
        raise EnvironmentFault(
            f"--task {ARRAY}: this job array of {count} elements from {first} to {last} has holes, so nobody can tell "
            "of how many tasks this is one; write I/N of the array that is repeated"
        )
    return Share((number - first) // step, count)

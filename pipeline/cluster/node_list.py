"""Slurm's short forms: `gpu[007-009,12],cpu1` for hosts, `2(x3),1` for how many tasks each has."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping

from pipeline.errors import EnvironmentFault

MOST_HOSTS = 100_000  # in one item of a list: a damaged variable must not fill the memory


def expected_hosts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The hosts of this Slurm step (or job), in order; none outside Slurm."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    return list(expand_hosts(hosts)) if hosts else []


def first_host(hosts: str) -> str:
    """The first host of a Slurm node list: `gpu[007-009,12],cpu1` gives `gpu007`.

    Raises: EnvironmentFault for a list of another form.
    """
    return next(expand_hosts(hosts))


def expand_hosts(hosts: str) -> Iterator[str]:
    """The hosts of a Slurm node list in its order, as `scontrol show hostnames` gives them.

    Raises: EnvironmentFault for a list of another form.
    """
    wrong = EnvironmentFault(
        f"SLURM_JOB_NODELIST={hosts[:200]!r} is not of the form gpu[007-009,12],cpu1; export MASTER_ADDR=<first host>"
    )
    if not _NODE_LIST.fullmatch(hosts):
        raise wrong
    for item in _NODE_ITEM.findall(hosts):
        choices = [list(_numbers(part[1:-1])) if part[0] == "[" else [part] for part in _NODE_PART.findall(item)]
        if not 0 < math.prod(map(len, choices)) <= MOST_HOSTS:
            raise wrong
        for parts in itertools.product(*choices):
            yield "".join(parts)


def _numbers(ranges: str) -> Iterator[str]:
    """`007-009,12` is 007, 008, 009, 12."""
    for each in ranges.split(","):
        low, _, high = each.partition("-")
        for number in range(int(low), min(int(high or low), int(low) + MOST_HOSTS) + 1):
            yield str(number).zfill(len(low))


_RANGE = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_RANGES = rf"\[{_RANGE}(?:,{_RANGE})*\]"
_ITEM = rf"(?:[^\[\],\s]|{_RANGES})+"
_NODE_PART = re.compile(rf"[^\[\],\s]+|{_RANGES}")
_NODE_ITEM = re.compile(_ITEM)
_NODE_LIST = re.compile(rf"{_ITEM}(?:,{_ITEM})*")


def tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` is [2, 2, 2, 1]. Raises: EnvironmentFault for another form."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part.strip())
        if not found or int(found[2] or 1) > MOST_HOSTS:
            raise EnvironmentFault(f"SLURM_TASKS_PER_NODE={text[:200]!r} is not of the form 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts

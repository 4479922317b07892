"""When a training has to stop by itself: `max_hours`, or the end of its Slurm job, less the time that a save takes.

Only rank 0 asks, once, for the time that is left; from then on the monotonic clock counts, so that a clock that is set
back or forward changes nothing. Slurm is asked for the time left rather than for the time of day at which the job ends:
the clocks of the node and the controller may differ.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping

from pipeline.progress import log

LEAST = 30.0  # seconds: the smallest margin
SAFETY = 2.0  # how much longer than before the next step and save may take
DISK = 100e6  # bytes a second: what a slow disk takes, before a save has been seen
PATIENCE = 10.0  # seconds that Slurm may take to answer
FOR_EVER = 300 * 86_400.0  # Slurm tells the end of a job without a limit as a year from now
_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")  # [days-][hours:]minutes:seconds


class TimeLimit:
    """Says when to stop. left: seconds from now; None: no limit. bytes: of a checkpoint, before one has been saved."""

    def __init__(self, left: float | None, why: str, checkpoint_bytes: float) -> None:
        self.why = why
        self._deadline = None if left is None else time.monotonic() + left
        self._save = checkpoint_bytes / DISK
        self._step = 0.0

    def stepped(self, seconds: float) -> None:
        """A step took so long. The longest of late counts: one in which something was validated too."""
        self._step = max(seconds, 0.99 * self._step)

    def saved(self, seconds: float) -> None:
        """A save took so long, from its begin to its commit."""
        self._save = seconds

    @property
    def margin(self) -> float:
        """Seconds before the end at which the last save has to begin."""
        return max(LEAST, SAFETY * (self._save + self._step))

    @property
    def left(self) -> float | None:
        """Seconds until the end."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def reached(self) -> bool:
        """Whether one more step might be too much."""
        left = self.left
        return left is not None and left <= self.margin


def time_left(max_hours: float | None, environment: Mapping[str, str] = os.environ) -> tuple[float | None, str]:
    """Seconds left from now, and what sets them: the recipe or Slurm, whichever ends first; None for no limit."""
    limits = [(seconds, why) for seconds, why in (_of_recipe(max_hours), _of_slurm(environment)) if seconds is not None]
    return min(limits) if limits else (None, "")


def _of_recipe(max_hours: float | None) -> tuple[float | None, str]:
    return (None if max_hours is None else 3600 * max_hours), "max_hours"


def _of_slurm(environment: Mapping[str, str]) -> tuple[float | None, str]:
    job, why = environment.get("SLURM_JOB_ID"), "the time limit of the Slurm job"
    if job is None:
        return None, why
    if array := environment.get(
        "SLURM_ARRAY_JOB_ID"
    ):  # the last element bears the number of all, of which squeue tells
        job = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    answer = _ask_squeue(job, environment)
    if answer is not None:
        return answer, why
    end = environment.get("SLURM_JOB_END_TIME", "")  # seconds since 1970; not of Slurm 22.05
    left = float(end) - time.time() if end.isdecimal() else FOR_EVER
    return (left if left < FOR_EVER else None), why


def _ask_squeue(job: str, environment: Mapping[str, str]) -> float | None:
    """None when Slurm's command is not here, does not answer, or knows no end."""
    program = shutil.which("squeue", path=environment.get("PATH"))
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-h", "-j", job, "-O", "TimeLeft:40"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            env=dict(environment),
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info(f"Slurm does not tell how much time job {job} has left: {str(error).splitlines()[0]}")
        return None
    return read_left(done.stdout)


def read_left(text: str) -> float | None:
    """Seconds in Slurm's form: `1-02:03:04`, `2:03:04`, `3:04`; None for UNLIMITED, NOT_SET, INVALID."""
    found = _LEFT.match(text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

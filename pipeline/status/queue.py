"""The jobs of a run that wait or run in Slurm's queue."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.progress import log

FIELDS = {
    "job": "%i",  # 17, or 17_3 for an element of an array
    "id": "%A",  # a number of its own for each element that runs
    "name": "%j",
    "state": "%T",
    "nodes": "%D",
    "time": "%M",
    "reason": "%R",  # the node list, or in brackets why it waits
    "comment": "%k",
}
SECONDS = 15.0  # for an answer


def jobs_in_queue(ids: set[str], workdir: Path) -> list[dict[str, Any]] | None:
    """Jobs that have worked on a run, or were submitted for it (their comment names its folder); None without Slurm."""
    squeue = shutil.which("squeue")
    if squeue is None:
        return None
    command = [squeue, "--noheader", "--format=" + "|".join(FIELDS.values())]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("squeue: %s", " ".join(str(error).split())[:200])
        return None
    if answer.returncode:
        if not ids:  # Slurm's commands are here, but no cluster; the run has never asked for one
            return None
        said = answer.stderr.strip().splitlines() or [f"ended with {answer.returncode}"]
        log.warning("squeue: %s", said[0].removeprefix("squeue: error: "))
        return None
    found = []
    for line in answer.stdout.splitlines():
        job = dict(zip(FIELDS, (word.strip() for word in line.split("|")), strict=False))
        if {job["id"], job["job"].split("_")[0]} & ids or job.get("comment") == str(workdir):
            found.append(job)
    return found

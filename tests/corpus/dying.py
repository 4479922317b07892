"""For programs that kill a stage before each of its renames: a forked child that dies before its n-th."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forked(workdir: Path, die_at: int, work: Callable[..., object], *arguments: Any) -> int:
    """`work(workdir, *arguments)` in a child, which sends itself SIGKILL before its `die_at`-th rename (-1: none) to
    below `workdir`/text. Returns its exit status, negative where a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    renames, replace = 0, os.replace

    def counting(old: Path, new: Path) -> None:
        nonlocal renames
        renames += "text" in Path(new).parts[len(workdir.parts) : -1]
        if renames == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = counting  # type: ignore[assignment]
    status = 1
    try:
        work(workdir, *arguments)
        status = 0
    except Exception:
        traceback.print_exc()
    os._exit(status)

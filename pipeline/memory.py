"""How much memory this process has held, and how often it looks for garbage."""

from __future__ import annotations

import atexit
import gc
import re
import resource
from pathlib import Path

OBJECTS = 10_000  # new ones after which Python looks for cycles among them; its own 700 are few for today's libraries
_STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """Bytes that this process held at the most.

    Linux tells it of the program itself; what `getrusage` tells begins with the peak of the process that started it.
    """
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def collect_garbage_seldom() -> None:
    """For the start of a process that imports torch and its like, a million objects that stay.

    Looking for cycles among them again and again, and once more when the process ends, took a third of the processor's
    time in which a rank starts and ends (tools/bench/README.md).
    """
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)  # what is frozen is not looked through

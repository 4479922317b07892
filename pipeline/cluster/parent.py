"""Processes that end with the one that started them, also when it is killed with SIGKILL."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int, status: int = 1) -> Callable[[], None]:
    """What a child calls first: from then on Linux kills it when the process `parent` dies; elsewhere it does nothing.

    Made before the fork and called after it: a forked child must not load libraries. If the parent is dead already,
    the child leaves at once with `status`.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def ask() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(status)

    return ask

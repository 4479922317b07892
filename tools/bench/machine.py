"""What a figure was measured on: a line to put above a table."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata

import psutil

_BUSY = 0.5  # runnable processes on average: above it others had a share of the machine


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name, as Linux tells it."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version(package: str) -> str:
    """The version of an installed distribution; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def describe() -> str:
    """Date, processor, cores, memory, Python; a second line where other work disturbs the measurement."""
    now = datetime.now(timezone.utc)
    memory = psutil.virtual_memory().total / 2**30
    line = f"{now:%Y-%m-%d}, {processor()}, {cores()} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    load = os.getloadavg()[0]
    return line if load < _BUSY else f"{line}\nthe machine was busy before (load {load:.1f}): ratios hold, MB/s do not"

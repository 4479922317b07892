"""What a process says that it has held is its own; it looks for garbage seldom, and not once more at its end."""

from __future__ import annotations

import subprocess
import sys

from pipeline.memory import OBJECTS

# A process that held 300 MB says so, and then what one says that it started.
TOLD = """
import subprocess, sys
from pipeline.memory import peak_resident
child = "from pipeline.memory import peak_resident; print(peak_resident())"
held = bytearray(b"x") * 300_000_000
del held
print(peak_resident())
subprocess.run([sys.executable, "-c", child], check=True)
"""

# What was registered first is called last.
SELDOM = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
from pipeline.cli import main
try:
    main(["recipes"])
finally:
    print(gc.get_threshold()[0], gc.get_freeze_count())
"""


def test_the_peak_is_kept_and_is_not_that_of_the_process_that_started_it() -> None:
    told = subprocess.run([sys.executable, "-u", "-c", TOLD], capture_output=True, text=True, check=True)
    held, child = map(int, told.stdout.split())
    assert 300_000_000 < held < 400_000_000
    assert 1_000_000 < child < 100_000_000


def test_the_command_looks_for_garbage_seldom_and_not_at_its_end() -> None:
    told = subprocess.run([sys.executable, "-u", "-c", SELDOM], capture_output=True, text=True, check=True)
    *_, threshold, frozen, frozen_at_the_end = told.stdout.split()
    assert int(threshold) == OBJECTS
    assert int(frozen) == 0
    assert int(frozen_at_the_end) > 10_000

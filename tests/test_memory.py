"""What a process says that it has held is its own."""

from __future__ import annotations

import subprocess
import sys

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


def test_the_peak_is_kept_and_is_not_that_of_the_process_that_started_it() -> None:
    told = subprocess.run([sys.executable, "-u", "-c", TOLD], capture_output=True, text=True, check=True)
    held, child = map(int, told.stdout.split())
    assert 300_000_000 < held < 400_000_000
    assert 1_000_000 < child < 100_000_000

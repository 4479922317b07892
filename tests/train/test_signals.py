"""A signal asks for an orderly stop; the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline.train.signals import ASKING, StopRequest

TWICE = """
import os, signal, sys
from pipeline.train.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print("asked", stop.asked, flush=True)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print("still here", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_the_second_signal_leaves_at_once(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-getattr(signal, name), "asked True\n")


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_asks_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
    assert signal.getsignal(number) is before

"""What tests start does not outlive a test that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from processes import nothing_left_after_an_error, run_to_end, status_of

from pipeline.train.hang_report import GONE, process_state

ORPHAN = """setsid sleep 600 >/dev/null 2>&1 &
until [ "$(tr '\\0' ' ' </proc/$!/cmdline)" = "sleep 600 " ]; do :; done
echo $!"""  # its parent ends, and it goes on


def ends(pid: int) -> None:
    deadline = time.monotonic() + 300
    while process_state(pid) not in GONE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_failed_block_has_started_is_ended_orphans_too() -> None:
    pids = []
    with pytest.raises(ZeroDivisionError), nothing_left_after_an_error():
        child = subprocess.Popen(["sleep", "600"])
        child.send_signal(signal.SIGSTOP)
        pids += [child.pid, int(subprocess.run(["sh", "-c", ORPHAN], capture_output=True, check=True).stdout)]
        raise ZeroDivisionError
    assert child.wait(300) == -signal.SIGKILL
    for pid in pids:
        ends(pid)


def test_a_command_that_does_not_end_shows_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    for timeout in (5, 60, 240):  # a shell on a busy machine may take long to say it
        with pytest.raises(subprocess.TimeoutExpired):
            run_to_end(["sh", "-c", "echo here; sleep 600"], timeout=timeout)
        if said := "here" in capfd.readouterr().err:
            break
    assert said
    assert run_to_end(["echo", "well"]).stdout == "well\n"


def test_a_forked_child_that_does_not_end_is_ended() -> None:
    child = os.fork()
    if not child:
        while True:
            time.sleep(1)
    with pytest.raises(TimeoutError):
        status_of(child, 0.2)
    ends(child)

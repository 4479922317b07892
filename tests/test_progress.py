"""Lines of progress: what a killed process leaves behind hinders nobody, nor does a reader that has gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Forked processes, each killed at the n-th call of any function while it writes a line, for every n.
KILLED_WHILE_IT_SPEAKS = """
import os, signal, sys
from pipeline.progress import log, start_logging
start_logging()
log.info("the parent")
def forked(calls):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    def count(*_):
        nonlocal calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    log.info("a child")
    os._exit(0)
killed = 0
while (status := forked(killed)) != 0:
    assert status == -signal.SIGKILL, status
    killed += 1
log.info("the parent again")
print(killed)
"""


def test_a_process_that_is_killed_while_it_writes_a_line_keeps_nobody_waiting() -> None:
    command = [sys.executable, "-c", KILLED_WHILE_IT_SPEAKS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
    assert done.stderr.splitlines()[-1] == "the parent again"


SPEAKS = """
from pipeline.progress import log, progress, start_logging
start_logging()
log.info("a line")
with progress("work", 2) as bar:
    bar.advance(1)
    log.info("another")
print("done")
"""


@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full", "2>&1 >&3 | true"])
def test_work_goes_on_where_nobody_can_be_told(errors: str) -> None:
    """Standard error is closed, lies on a full disk, or is read by somebody who has gone."""
    words = ["bash", "-c", f'set -o pipefail; {{ "$0" -c "$1" {errors}; }} 3>&1', sys.executable, SPEAKS]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

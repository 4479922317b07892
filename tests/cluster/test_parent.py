"""Children that die with the process that started them: one that is killed, and one that was dead before they asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from processes import status_of

from pipeline.cluster.parent import die_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def test_a_child_is_killed_with_its_parent() -> None:
    """The pipe that only the child holds open ends with it."""
    program = textwrap.dedent(
        """
        import os, time
        from pipeline.cluster.parent import die_with_parent

        ask = die_with_parent(os.getpid())
        if os.fork() == 0:
            ask()
            os.write(1, b"here")
            time.sleep(600)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert os.read(parent.stdout.fileno(), 4) == b"here"
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        assert parent.stdout.read() == b""  # comes back when nobody has it open any more


def test_a_child_whose_parent_is_dead_already_leaves_at_once() -> None:
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(os.getpid(), status=75)()  # a process that is not its parent
        finally:
            os._exit(99)
    assert status_of(child) == 75

"""Python as jobs of the tests start it, halting.py WORDS…: a rank that trains stops itself where it is told to.

A file `halt-<rank>` in the run's folder holds "<step> <host>" (any host where that is empty): once that many steps are
done there, the rank takes the file away and sends itself SIGSTOP. A test that looked for the step and sent the signal
would chase a training that may end first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def train(words: list[str]) -> None:
    """`pipeline WORDS…`, with ranks that stop."""
    from pipeline.cli import main
    from pipeline.memory import collect_garbage_seldom

    collect_garbage_seldom()  # as main does; the next line imports torch
    from pipeline.train.watchdog import Watchdog

    beat = Watchdog.beat

    def halting(self: Watchdog, step: int, synced: bool = True) -> None:
        beat(self, step, synced)
        asked = self._beats.parents[1] / f"halt-{self.ranks.rank}"
        if asked.exists():
            wanted, _, host = asked.read_text(encoding="utf-8").partition(" ")
            if step >= int(wanted) and host in ("", os.uname().nodename):
                while True:
                    with contextlib.suppress(FileNotFoundError):  # the watchdog's thread writes under the same name
                        self._write_heartbeat()
                        break
                asked.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)

    Watchdog.beat = halting  # type: ignore[method-assign]
    main(words)


if sys.argv[1:4] == ["-m", "pipeline", "pretrain"]:
    sys.path[0] = ""  # as -m does
    train(sys.argv[3:])
else:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

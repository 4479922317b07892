"""Starts of a stage, to be killed: through the `pipeline` command, or ranks forked from this very process.

A rank spends four seconds of processor time on imports before it touches the run. A fork of a process that has
imported them already does all the rest as ever: it is a launcher's rank, which meets the others, takes the lock,
reads the checkpoint. Only so are hundreds of kills possible in minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from pipeline.cluster.launch import environments, free_port
from pipeline.cluster.parent import die_with_parent
from pipeline.cluster.ranks import LAUNCHER

MODULES = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # with it torch's whole compiler: two seconds
    "transformers",
    "pipeline.train.pretrain",
    "pipeline.train.finetune",
    "pipeline.run",
)
SAFE_THREADS = ("jemalloc_bg_thd",)  # pyarrow's, which knows how to be forked


def preload() -> None:
    """Import what ranks need, with no thread left behind: a fork copies one thread only."""
    for module in MODULES:
        __import__(module)
    names = [path.read_text(encoding="ascii").strip() for path in Path("/proc/self/task").glob("*/comm")]
    if strangers := [name for name in names[1:] if name not in SAFE_THREADS]:
        raise SystemExit(f"chaos: threads {strangers} after the imports; forked ranks could hang: give --cold 1")


class Start:
    """One start of `pipeline ARGUMENTS`; its words go to the file `log`."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.began = time.monotonic()
        self.log = log
        self.statuses: dict[int, int] = {}  # by pid, of those that have ended
        self.pids: list[int] = []

    def processes(self) -> list[tuple[str, int]]:
        """(name, pid) of those that a kill may hit, and that are alive."""
        raise NotImplementedError

    def running(self) -> bool:
        """Whether any process of it is left; takes note of those that have ended."""
        for pid in self.pids:
            if pid not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.pids)

    def wait(self, seconds: float) -> bool:
        """Give it so long to end by itself. Returns whether it did."""
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def end(self) -> None:
        """Nothing of it outlives this call."""
        for _, pid in self.processes():
            send(pid, signal.SIGKILL)
        while self.running():
            time.sleep(0.005)


class Forked(Start):
    """Ranks forked from this process, as a launcher starts them. `preload` comes before."""

    def __init__(self, arguments: list[str], log: Path, ranks: int) -> None:
        super().__init__(arguments, log)
        launch = uuid.uuid4().hex
        sys.stdout.flush()
        for environment in environments(ranks, free_port()):
            environment.pop(LAUNCHER, None)
            environment["TORCHELASTIC_RUN_ID"] = launch
            stay = die_with_parent(os.getpid())
            pid = os.fork()
            if pid == 0:
                stay()
                _be_rank(arguments, log, environment)
            self.pids.append(pid)

    def processes(self) -> list[tuple[str, int]]:
        self.running()
        return [(f"rank {rank}", pid) for rank, pid in enumerate(self.pids) if pid not in self.statuses]


class Command(Start):
    """The `pipeline` command, which starts its own ranks or workers."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        super().__init__(arguments, log)
        with open(log, "ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.pids = [self.process.pid]
        self.family: dict[int, str] = {}  # all that were ever seen of it

    def running(self) -> bool:
        for pid in self.pids:
            found = self.process.poll()
            if found is not None:
                self.statuses[pid] = found
        return len(self.statuses) < len(self.pids)

    def processes(self) -> list[tuple[str, int]]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.pid not in self.family:
                    with contextlib.suppress(psutil.Error):
                        rank = child.environ().get("RANK")
                        self.family[child.pid] = f"rank {rank}" if rank else "a worker"
        parent = [("the command", self.process.pid)] if self.running() else []
        return parent + [(name, pid) for pid, name in self.family.items() if _alive(pid)]

    def end(self) -> None:
        super().end()
        while any(_alive(pid) for pid in self.family):  # children that lost their parent are not ours to wait for
            time.sleep(0.005)


def _be_rank(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """What a forked child does; it never returns to the code that it was forked from."""
    status = 1
    try:
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.environ.clear()
        os.environ.update(environment)
        from pipeline.cli import main

        main(arguments)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def send(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

"""Notices that a training hangs, says which rank is to blame, and ends it so that the scheduler can start it again.

A thread in each rank writes `heartbeats/rank-00000.json` in the stage's folder and looks at the time: a step may take
`hang_factor` times the median step, and never less than `hang_seconds`; whatever else a rank does has a limit of its
own (`doing`). The first rank that waits too long asks all others, by a file, what they are doing. They answer with
their stacks; the lowest rank that answers writes the report (hang_report.py); then every rank leaves with 75.

Ranks talk by files because files work while a rank is stopped, dead or stuck in a collective, and can be read later.
Time is the monotonic clock: a laptop's sleep and a clock that is set do not count. Nor does time in which this very
thread did not run, as when Slurm suspends the whole job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import secrets
import shutil
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.cluster.ranks import Ranks
from pipeline.errors import PipelineError, Stopped
from pipeline.files import TEMPORARY
from pipeline.progress import log
from pipeline.settings.training import WatchdogSettings
from pipeline.tracking import Tracker
from pipeline.train import hang_report, lost_peer
from pipeline.train.collective import broadcast, entered, gather, last_entered
from pipeline.train.hang_report import HEARTBEATS, Peer

TICK = 0.5  # seconds between two looks at the time
LEAST_PATIENCE = 5.0  # seconds that the other ranks have for their answers in a report of a hang, at least
GAP = 5.0  # a look that is so many seconds late: the whole process was stopped
REMEMBERED = 32  # steps whose median counts


class Watchdog:
    """Watches this rank while the block runs; every rank opens one, after they have met.

    folder: of the stage. about: numbers that stand in each heartbeat (steps in all, tokens a step).
    Raises on entry: nothing of its own. On the way out an error that only says that another rank is gone is turned
    into one that names that rank: Stopped when it was killed, SystemExit with its status when it failed by itself.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        settings: WatchdogSettings,
        tracker: Tracker | None = None,
        about: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self.ranks, self.settings = folder, ranks, settings
        self._tracker, self._about = tracker or Tracker(), dict(about or {})
        self._beats = folder / HEARTBEATS
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._step, self._doing = 0, "start"
        self._limit: float | None = settings.phase_seconds  # of what is being done; None: a step's
        self._since = self._counted = time.monotonic()  # when that began; from when the next step's seconds count
        self._steps_counted: int | None = None  # step up to which times are known; None: before the first one
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)  # of a step
        self._longest: deque[float] = deque(maxlen=REMEMBERED)  # between two beats that waited for the device
        self._told = ""  # the last complaint about the file system
        self.peers: list[Peer] = []

    def __enter__(self) -> Watchdog:
        if self.ranks.first:
            shutil.rmtree(self._beats, ignore_errors=True)
            self._beats.mkdir(parents=True, exist_ok=True)  # a lingering rank of the last start may write there
        # A file of another start, or of a ghost of an old job, bears another token.
        self._token: str = broadcast(secrets.token_hex(4))
        self.peers = gather(Peer(self.ranks.rank, socket.gethostname(), os.getpid()))
        self._stuck = open(hang_report.stuck_path(self._beats, self.ranks.rank), "wb")
        self._since = self._counted = time.monotonic()
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = None
        if error is not None and self.ranks.world_size > 1 and lost_peer.of_network(error):
            with self.doing("look for a lost rank"):  # the thread goes on: the others see that this one is alive
                patience = 3 * self.settings.heartbeat_seconds
                lost = lost_peer.find(self._beats, self._token, self.ranks, self.peers, patience)
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stuck.close()
        self._doing = "ended"
        ended: dict[str, Any] = {}
        if lost is not None:
            ended = {"followed": lost.rank}
        elif error is not None:
            status = getattr(error, "status", PipelineError.status)
            ended = {"error": f"{type(error).__name__}: {error}", "status": status}
        with contextlib.suppress(OSError):  # the disk may be full: that is what ends it
            self._write_heartbeat(ended)
        if lost is not None:
            if lost.status is None:
                raise Stopped(f"{lost.words}; the same command continues from the last checkpoint") from error
            log.error("%s", lost.words)
            raise SystemExit(lost.status) from error

    # --- what the training tells -----------------------------------------------------------------------------------

    def beat(self, step: int, synced: bool = True) -> None:
        """`step` steps are done. synced: their result is on the host; else a GPU may still be at work on them."""
        now = time.monotonic()
        with self._lock:
            if synced:
                if self._steps_counted is not None and step > self._steps_counted:
                    seconds = now - self._counted
                    self._seconds.append(seconds / (step - self._steps_counted))
                    self._longest.append(seconds)
                self._steps_counted, self._counted = step, now  # the first one, with its compilation, is left out
            self._step, self._doing, self._limit, self._since = step, "step", None, now

    @contextlib.contextmanager
    def doing(self, what: str, limit: float | None = None) -> Iterator[None]:
        """Something that is not a step: `validate`, `save`, … It may take `limit` seconds; None: phase_seconds."""
        with self._lock:
            before, began = (self._doing, self._limit), time.monotonic()
            self._doing, self._limit, self._since = what, limit or self.settings.phase_seconds, began
        yield  # after an error the last thing done stays on record
        with self._lock:
            now = time.monotonic()
            (self._doing, self._limit), self._since = before, now
            if self._limit is None:  # in the middle of the steps: not of their time
                self._counted += now - began

    # --- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        looked, written = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if now - looked > TICK + GAP:
                self._forgive(now - looked)
            looked = now
            try:
                if now - written >= self.settings.heartbeat_seconds:
                    written = now
                    self._write_heartbeat()
                    self._arm()
                if hang_report.asked(self._beats, self._token) or self._hangs(now):
                    self._leave()
            except Exception as error:  # a full disk, a file server that is away: the training itself may go on
                if str(error) != self._told:
                    self._told = str(error)
                    log.warning(
                        "rank %d: the watchdog cannot do its work in %s: %s", self.ranks.rank, self._beats, error
                    )
            if self._end.wait(TICK):
                return

    def _arm(self) -> None:
        """From now on, if this thread is not heard of, faulthandler writes all stacks: its thread is not Python's, and
        runs also while a call that never comes back holds the interpreter."""
        os.lseek(self._stuck.fileno(), 0, os.SEEK_SET)
        os.ftruncate(self._stuck.fileno(), 0)  # what it wrote while the job was suspended
        # Without `exit`: it cannot tell that from a job that is suspended, and would end it when it goes on.
        faulthandler.dump_traceback_later(2 * self.settings.heartbeat_seconds + GAP, file=self._stuck)

    def limit(self) -> float:
        """Seconds that what is being done now may take."""
        with self._lock:
            if self._limit is not None:
                return self._limit
            if not self._seconds:
                return max(self.settings.phase_seconds, self.settings.hang_seconds)
            # On a GPU the host waits only at each log interval: that wait is as long as many steps.
            many = max(self.settings.hang_factor * statistics.median(self._seconds), 3 * max(self._longest))
            return max(many, self.settings.hang_seconds)

    def _hangs(self, now: float) -> bool:
        if not self.settings.hang_seconds or now - self._since < self.limit():
            return False
        if hang_report.debugged():
            self._forgive(now - self._since)
            return False
        with self._lock:
            why = {
                "by": self.ranks.rank,
                "step": self._step,
                "doing": self._doing,
                "seconds": round(now - self._since, 1),
            }
            median = statistics.median(self._seconds) if self._seconds else None
        hang_report.ask(self._beats, self._token, {**why, "limit": round(self.limit(), 1), "median": median})
        return True

    def _leave(self) -> None:
        """Answer, see to it that one rank reports, and end the process."""
        try:
            now = time.monotonic()
            patience = min(30.0, max(LEAST_PATIENCE, self.settings.hang_seconds / 4))
            name, ago = last_entered()
            answer = {
                "rank": self.ranks.rank,
                "step": self._step,
                "doing": self._doing,
                "seconds": round(now - self._since, 1),
                "collectives": entered(),
                "last_collective": name,
                "last_collective_seconds": round(ago, 1),
            }
            report = hang_report.Report(self.folder, self._token, self.ranks, self.peers, patience)
            report.answer(answer)
            report.make_or_wait(self._tracker)
        except BaseException:
            log.exception("rank %d: the report of a hang failed", self.ranks.rank)
        finally:
            for handler in (*log.handlers, *logging.getLogger().handlers):
                with contextlib.suppress(Exception):
                    handler.flush()
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            # Not sys.exit: the main thread is stuck, and whoever leaves in order would wait for it.
            os._exit(Stopped.status)

    def _forgive(self, seconds: float) -> None:
        """The process was stopped so long: that is no hang."""
        now = time.monotonic()
        with self._lock:
            self._since, self._counted = min(now, self._since + seconds), min(now, self._counted + seconds)

    def _write_heartbeat(self, more: Mapping[str, Any] | None = None) -> None:
        """Replace this rank's file. Not synced: it is of no use after a crash of the machine."""
        with self._lock:
            median = statistics.median(self._seconds) if self._seconds else None
            name, _ = last_entered()
            value = {
                "rank": self.ranks.rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "token": self._token,
                "step": self._step,
                "time": round(time.time(), 3),
                "doing": self._doing,
                "doing_seconds": round(time.monotonic() - self._since, 3),
                "collective": name,
                "collectives": entered(),
                "step_seconds": median,
                **self._about,
                **(more or {}),
            }
        if median and "tokens_per_step" in self._about:
            value["tokens_per_second"] = self._about["tokens_per_step"] / median
        path = hang_report.heartbeat_path(self._beats, self.ranks.rank)
        temporary = path.with_name(path.name + TEMPORARY)
        temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
        temporary.replace(path)

"""Takes spools to a tracking server in a thread of its own: whatever the server does, training does not wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.errors import Fenced
from pipeline.journal import FENCE_SECONDS, Journal, Line
from pipeline.printable import without_secrets
from pipeline.progress import log
from pipeline.spool import Spool, spools

SEND_SECONDS = 2.0  # between two looks at the spools
FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # seconds; each wait is twice the one before
BATCH_BYTES = 100_000  # of journal read at once: some hundred points
CLOSE_SECONDS = 20.0  # at the end of a stage, for what is left; a new store takes a few
CLOSE_SECONDS_AWAY = 3.0  # the same, when the server was away already


class Store(Protocol):
    """Where runs are kept. Each call may raise anything, and may be repeated."""

    def open_run(self, spool: Spool) -> str:
        """The id of the run that shows this spool; made when it is not there."""

    def send_metrics(self, run_id: str, lines: Sequence[Line]) -> None:
        """Take numbers: lines of a metrics journal."""

    def send_event(self, run_id: str, event: Line) -> None:
        """Take an event: a line of an events journal. What can never succeed is told and left."""


class Delivery(threading.Thread):
    """Sends the spools `own` while they grow, and once what others in the same folder left behind.

    connect: makes the store; slow, may fail. place: what people call it. Errors are told once and tried again, with
    growing waits.
    """

    def __init__(self, connect: Callable[[], Store], place: str, own: Sequence[Spool]) -> None:
        super().__init__(name="tracking", daemon=True)
        self.connect, self.place, self.own = connect, place, own
        self.trouble = ""
        self.fenced = False  # another command has taken over, and sends
        self._closing, self._wake = threading.Event(), threading.Event()

    def run(self) -> None:
        store: Store | None = None
        runs: dict[str, str] = {}
        retry = FIRST_RETRY
        while True:
            closing = self._closing.is_set()  # what was written before is still sent below
            try:
                if store is None:
                    store, runs = self.connect(), {}
                    self._send(store, [*self.own, *self._left_behind()], runs)
                else:
                    self._send(store, self.own, runs)
                if self.trouble:
                    log.info("tracking: %s is back", self.place)
                self.trouble, retry, wait = "", FIRST_RETRY, SEND_SECONDS
            except Fenced:
                self.fenced = True
                return
            except Exception as error:  # a client, a server, a database, a disk: none may end the training
                if not self.trouble:
                    log.warning(
                        "tracking: cannot send to MLflow at %s (%s); work goes on, numbers wait in %s",
                        self.place,
                        _one_line(error),
                        self.own[0].logs,
                    )
                log.debug("tracking: %r", error, exc_info=True)
                self.trouble = _one_line(error)
                store, wait = None, retry
                retry = min(2 * retry, LAST_RETRY)
            if closing and (self.trouble or not any(spool.unsent() for spool in self.own)):
                return
            self._wake.wait(0.2 if closing else wait)
            self._wake.clear()

    def close(self) -> None:
        """Send what is left, within bounds; say so when something has to wait for the next start."""
        self._closing.set()
        self._wake.set()
        self.join(CLOSE_SECONDS_AWAY if self.trouble else CLOSE_SECONDS)
        if not self.fenced and any(spool.unsent() for spool in self.own):
            points = sum(spool.unsent_points() for spool in self.own)
            log.warning(
                "tracking: %d numbers wait in %s; they are sent at the next start", points, self.own[0].metrics.path
            )

    def _left_behind(self) -> list[Spool]:
        mine = {spool.name for spool in self.own}
        return [spool for spool in spools(self.own[0].logs) if spool.name not in mine and spool.unsent()]

    def _send(self, store: Store, waiting: Sequence[Spool], runs: dict[str, str]) -> None:
        for spool in waiting:
            if not spool.unsent():
                continue
            with spool.only_sender() as mine:
                if not mine:  # another process is at it
                    continue
                path = str(spool.events.path)
                if path not in runs:
                    runs[path] = store.open_run(spool)
                    spool.send_to(self.place, runs[path])
                self._send_journal(spool, spool.events, lambda lines: self._events(store, runs[path], lines))  # noqa: B023
                self._send_journal(spool, spool.metrics, lambda lines: store.send_metrics(runs[path], lines))  # noqa: B023

    def _events(self, store: Store, run_id: str, lines: Sequence[Line]) -> None:
        for line in lines:
            store.send_event(run_id, line)

    def _send_journal(self, spool: Spool, journal: Journal, take: Callable[[Sequence[Line]], None]) -> None:
        while batch := list(journal.read(spool.last_sent(journal), BATCH_BYTES)):
            spool.fence.check(within=FENCE_SECONDS)
            started = time.monotonic()
            take([line for line, _ in batch])
            spool.mark_sent(journal, batch[-1][1])
            log.debug("tracking: %d lines of %s sent in %.2f s", len(batch), spool.name, time.monotonic() - started)


def _one_line(error: BaseException) -> str:
    """What went wrong, short: of a long chain (client, retries, socket) the system's own words at its root."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__  # type: ignore[assignment]
    told = root if isinstance(root, OSError) else error
    text = without_secrets(" ".join(str(told).split()))
    return f"{type(told).__name__}: {text}"[:300]

"""What a person sees while work is done: a bar with rate and time left on a terminal, plain lines in logs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pipeline.files import disk_errors

log = logging.getLogger("pipeline")
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def _lock_of_this_process() -> None:
    tqdm.set_lock(threading.RLock())


# tqdm's own lock is shared with forked processes: one that is killed while it writes a line would leave it taken, and
# whoever writes the next line, in whatever process of the family, would wait for ever.
_lock_of_this_process()
os.register_at_fork(after_in_child=_lock_of_this_process)


class _TerminalHandler(logging.Handler):
    """Writes above a running bar instead of through it. Where that is not possible any more (who reads it has gone, the
    disk with the job's output is full) the work goes on: the lines stand in logs/ too."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # closed by whoever started this
            with contextlib.suppress(OSError, ValueError):
                tqdm.write(self.format(record), file=sys.stderr)


def start_logging(verbose: bool = False) -> None:
    """Send the package's messages to standard error: plain, one line each."""
    log.handlers[:] = [_TerminalHandler()]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


class _LogFile(logging.FileHandler):
    """Where a full disk takes no line any more, whatever it ends tells that, once and in its own words."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also append messages, with date and time, to `path`.

    Raises: EnvironmentFault when it cannot be written: in a run's folder it is the first file that is.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class Progress:
    """Counts work done. On a terminal a bar, elsewhere a line every ten seconds."""

    def __init__(self, title: str, total: int, unit: str, start: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = start
        self.started = self.last_line = time.monotonic()
        self.note = ""
        self.bar = (
            tqdm(total=total, initial=start, desc=title, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True)
            if sys.stderr is not None and sys.stderr.isatty()
            else None
        )

    def advance(self, amount: int, note: str = "") -> None:
        """Add work done; `note` is shown beside it (a loss, a file name)."""
        self.done += amount
        self.note = note or self.note
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(amount)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            log.info(self.line())

    def line(self) -> str:
        """Share done, rate, time left and the note, as one line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.first) / seconds
        left = f", {tqdm.format_interval((self.total - self.done) / rate)} left" if rate and self.total else ""
        share = f"{self.done / self.total:4.0%}" if self.total else tqdm.format_sizeof(self.done) + self.unit
        note = f"  {self.note}" if self.note else ""
        return f"{self.title} {share}  {tqdm.format_sizeof(rate)}{self.unit}/s{left}{note}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextlib.contextmanager
def progress(title: str, total: int, unit: str = "B", start: int = 0) -> Iterator[Progress]:
    """Show progress while the block runs. total: 0 when unknown; start: work already done before."""
    shown = Progress(title, total, unit, start)
    try:
        yield shown
    finally:
        shown.close()

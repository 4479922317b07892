"""The report of a hang: what every rank was doing, and which one the others wait for.

In `heartbeats/`, with the token of this start in their names: `hang-<token>.json` (who noticed, and what),
`answer-<token>-00000.json` (each rank's), `reporter-<token>`, `reported-<token>`. A person reads `hang-<n>.txt` in the
stage's folder, and the same in short in the log.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.cluster.ranks import Ranks
from pipeline.files import TEMPORARY, write_text
from pipeline.progress import log
from pipeline.tracking import Tracker
from pipeline.train.audit import Audit

HEARTBEATS = "heartbeats"
GONE = ("gone", "Z", "X")  # states of a process that is dead
SHOWN, FRAMES = 3, 3  # ranks, and frames of each thread, that are shown in the log; all are in the file
OURS = "watchdog"  # the thread that asks
DEBUGGERS = ("bdb.py", "pdb.py", "pydevd")


@dataclass(frozen=True)
class Peer:
    """Where a rank lives."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.pid})"


def heartbeat_path(beats: Path, rank: int) -> Path:
    return beats / f"rank-{rank:05d}.json"


def stuck_path(beats: Path, rank: int) -> Path:
    """Where faulthandler, which needs no interpreter, writes the stacks of a rank whose threads cannot run."""
    return beats / f"stuck-{rank:05d}.txt"


def ask(beats: Path, token: str, why: Mapping[str, Any]) -> None:
    """Ask every rank what it does. Only the first to ask is heard."""
    with contextlib.suppress(FileExistsError), open(beats / f"hang-{token}.json", "x", encoding="utf-8") as file:
        file.write(json.dumps(dict(why)) + "\n")


def asked(beats: Path, token: str) -> bool:
    return (beats / f"hang-{token}.json").exists()


def process_state(pid: int) -> str | None:
    """State letter of a process of this host as in proc(5), `gone`, or None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"


def debugged() -> bool:
    """Whether somebody is looking at this process with a debugger: gdb and the like, or one of Python's."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if int(next(line.split()[1] for line in lines if line.startswith("TracerPid:"))):
            return True
    return any(
        name in frame.filename
        for top in sys._current_frames().values()
        for frame in traceback.extract_stack(top)
        for name in DEBUGGERS
    )


def stacks() -> dict[str, list[str]]:
    """Every thread's stack, outermost call first, the main thread before the others; not the watchdog's own."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = {
        names.get(ident, f"thread {ident}"): [
            f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")
            for frame in traceback.extract_stack(top)
        ]
        for ident, top in sys._current_frames().items()
    }
    found.pop(OURS, None)
    return dict(sorted(found.items(), key=lambda item: item[0] != "MainThread"))


def collective_of(frame: FrameType | None) -> str | None:
    """Name of torch.distributed's function that a thread is in: the outermost one, as it was called."""
    found = None
    while frame is not None:
        if frame.f_globals.get("__name__", "") == "torch.distributed.distributed_c10d":
            found = frame.f_code.co_name
        frame = frame.f_back
    return found


class Report:
    """One rank's part in the report. patience: seconds that the others have for their answers."""

    def __init__(self, folder: Path, token: str, ranks: Ranks, peers: Sequence[Peer], patience: float) -> None:
        self.folder, self.beats, self.token = folder, folder / HEARTBEATS, token
        self.ranks, self.peers, self.patience = ranks, peers, patience

    def answer(self, what: Mapping[str, Any]) -> None:
        """Write what this rank does, and how the processes of its host are."""
        here = self.peers[self.ranks.rank].host
        value = {
            **what,
            "waits_in": collective_of(sys._current_frames().get(threading.main_thread().ident or 0)),
            "stacks": stacks(),
            "neighbours": {peer.rank: process_state(peer.pid) for peer in self.peers if peer.host == here},
        }
        path = self._answer_path(self.ranks.rank)
        temporary = path.with_name(path.name + TEMPORARY)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)

    def make_or_wait(self, tracker: Tracker) -> None:
        """The lowest rank that has answered writes the report; the others wait for it: the launcher kills all when
        the first one leaves."""
        deadline = time.monotonic() + self.patience
        while len(answers := self._answers()) < len(self.peers) and time.monotonic() < deadline:
            time.sleep(0.2)
        done = self.beats / f"reported-{self.token}"
        if min(answers) != self.ranks.rank:
            deadline = time.monotonic() + self.patience
            while not done.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        if not done.exists():
            with contextlib.suppress(FileExistsError):
                (self.beats / f"reporter-{self.token}").touch(exist_ok=False)
                self._write(answers, tracker)
                done.touch()

    def _answer_path(self, rank: int) -> Path:
        return self.beats / f"answer-{self.token}-{rank:05d}.json"

    def _answers(self) -> dict[int, dict[str, Any]]:
        found = {}
        for peer in self.peers:
            with contextlib.suppress(OSError):
                found[peer.rank] = json.loads(self._answer_path(peer.rank).read_text(encoding="utf-8"))
        return found

    def _write(self, answers: dict[int, dict[str, Any]], tracker: Tracker) -> None:
        why = json.loads((self.beats / f"hang-{self.token}.json").read_text(encoding="utf-8"))
        blamed = blame(self.peers, answers)
        number = 1 + len(list(self.folder.glob("hang-*.txt")))
        path = self.folder / f"hang-{number}.txt"
        write_text(path, "\n".join(self._lines(why, blamed, answers)) + "\n")
        for line in (headline(why), *blamed.values()):
            log.error("hang: %s", line)
        for rank in (list(blamed) or [why["by"]])[:SHOWN]:
            for thread, lines in answers.get(rank, {}).get("stacks", {}).items():
                for line in lines[-FRAMES:]:
                    log.error("hang: rank %d, %s: %s", rank, thread, line)
            if rank not in answers:
                for line in self._last_words(self.peers[rank])[: 2 * FRAMES]:
                    log.error("hang: rank %d: %s", rank, line)
        log.error("hang: all stacks are in %s; the ranks end, and the same command continues", path)
        hosts = sorted({self.peers[rank].host for rank in blamed})
        # Rank 0 may be the one that hangs: whoever reports writes its line.
        Audit(self.folder, replace(self.ranks, rank=0), tracker).event(
            "hang", why["step"], ranks=sorted(blamed), hosts=hosts, report=path.name
        )

    def _lines(
        self, why: Mapping[str, Any], blamed: Mapping[int, str], answers: Mapping[int, dict[str, Any]]
    ) -> list[str]:
        found = [f"Hang, {datetime.now(timezone.utc).isoformat(timespec='seconds')}: {headline(why)}.", ""]
        found += [f"* {line}" for line in blamed.values()] or ["* No rank is behind the others."]
        found += ["", f"{'rank':>5} {'step':>9} {'collectives':>11}  {'seconds':>7}  doing, waits in, where"]
        for peer in self.peers:
            told = answers.get(peer.rank)
            if told is None:
                found.append(f"{peer.rank:>5} {'does not answer':>30}  {peer.host}, process {peer.pid}")
            else:
                what = f"{told['doing']}, {told['waits_in'] or 'no collective'}, {peer.host}, process {peer.pid}"
                found.append(
                    f"{peer.rank:>5} {told['step']:>9,} {told['collectives']:>11,}  {told['seconds']:>7.1f}  {what}"
                )
        for peer in self.peers:
            found += ["", str(peer)]
            for thread, lines in answers.get(peer.rank, {}).get("stacks", {}).items():
                found += [f"  {thread}", *(f"    {line}" for line in lines)]
            if peer.rank not in answers:
                found += [f"  {line}" for line in self._last_words(peer)]
        return found

    def _last_words(self, peer: Peer) -> list[str]:
        """What a rank that does not answer left: its last heartbeat, and what faulthandler could write."""
        words = []
        with contextlib.suppress(OSError, ValueError):
            beat = json.loads(heartbeat_path(self.beats, peer.rank).read_text(encoding="utf-8"))
            if beat.get("token") == self.token:
                ago = time.time() - beat["time"]
                words.append(f"last heartbeat {ago:.0f} s ago: step {beat['step']:,}, in '{beat['doing']}'")
        with contextlib.suppress(OSError):
            words += stuck_path(self.beats, peer.rank).read_text(encoding="utf-8", errors="replace").splitlines()
        return words or ["it has left nothing"]


def headline(why: Mapping[str, Any]) -> str:
    """What was noticed, as one line."""
    median = f", the median step {why['median']:.3g} s" if why["median"] else ""
    what = "a step" if why["doing"] == "step" else f"'{why['doing']}'"
    return (
        f"after step {why['step']:,} {what} has taken {why['seconds']:.0f} s on rank {why['by']} "
        f"(limit {why['limit']:.0f} s{median})"
    )


def blame(peers: Sequence[Peer], answers: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Ranks that the others wait for, and a line about each: those that do not answer; else those that have entered
    fewer collectives than others; else those that are in none while others are."""
    states: dict[int, str | None] = {}
    for told in answers.values():
        states |= {int(rank): state for rank, state in told["neighbours"].items() if state}
    silent = [peer for peer in peers if peer.rank not in answers]
    if silent:
        return {peer.rank: f"{peer} {_silence(states.get(peer.rank))}" for peer in silent}
    most = max(told["collectives"] for told in answers.values())
    waiting = sorted({told["waits_in"] for told in answers.values() if told["waits_in"]})
    behind = [rank for rank, told in answers.items() if told["collectives"] < most]
    if not behind and waiting:
        behind = [rank for rank, told in answers.items() if not told["waits_in"]]
    found = {}
    for rank in behind:
        told = answers[rank]
        others = f" while others wait in {' and '.join(waiting)}, number {most:,}" if waiting else ""
        found[rank] = (
            f"{peers[rank]} has entered {told['collectives']:,} collectives{others}; for {told['seconds']:.0f} s in "
            f"'{told['doing']}', and {told['last_collective_seconds']:.0f} s ago in {told['last_collective']}"
        )
    return found


def _silence(state: str | None) -> str:
    if state is None:
        return "does not answer: stopped, dead or cut off (it is on another host)"
    if state in GONE:
        return "is dead: its process is gone"
    if state in ("T", "t"):
        return f"does not answer: stopped (SIGSTOP or a debugger; state {state})"
    if state == "D":
        return "does not answer: waits in the kernel for a disk or a file server (state D)"
    return f"does not answer though its process lives (state {state}): a call outside Python holds the interpreter"

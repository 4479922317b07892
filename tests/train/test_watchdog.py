"""Hangs on real ranks: one asleep, one stopped, one dead, rank 0 stopped; and what must not be taken for a hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import run_to_end

from pipeline.cluster.ranks import ALONE, Ranks
from pipeline.errors import Stopped
from pipeline.settings.training import WatchdogSettings
from pipeline.train import lost_peer
from pipeline.train.audit import events
from pipeline.train.hang_report import HEARTBEATS, Peer, blame, debugged, heartbeat_path, process_state, stuck_path
from pipeline.train.watchdog import Watchdog

TASK = Path(__file__).with_name("tiny_task.py")
LAUNCH = "from pipeline.cluster import launch; from pipeline.progress import start_logging; import sys; "
LAUNCH += "start_logging(); launch.GRACE = float(sys.argv[1]); sys.exit(launch.launch_command(sys.argv[2:], 2))"
QUICK = {"hang_seconds": 8, "heartbeat_seconds": 0.5}
HOST = socket.gethostname()


def command(folder: Path, accident: list[Any], grace: float = 10.0, **wanted: Any) -> list[str]:
    training = {"folder": str(folder), "accident": accident, "settings": {"watchdog": QUICK}, **wanted}
    return [sys.executable, "-c", LAUNCH, str(grace), sys.executable, str(TASK), json.dumps([training])]


def launch(folder: Path, accident: list[Any], grace: float = 10.0, **wanted: Any) -> subprocess.CompletedProcess[str]:
    """Train on two ranks, of which one has an accident. grace: seconds that the launcher gives the other one then."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_to_end(command(folder, accident, grace, **wanted), env=environment)


def report(folder: Path) -> str:
    return (folder / "hang-1.txt").read_text(encoding="utf-8")


def hangs(folder: Path) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["kind"] == "hang"]


def heartbeat(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(heartbeat_path(folder / HEARTBEATS, rank).read_text(encoding="utf-8"))
    return found


# --- on real ranks -------------------------------------------------------------------------------------------------


def test_a_rank_that_sleeps_is_named_with_its_host_and_the_line_where_it_is(tmp_path: Path) -> None:
    ended = launch(tmp_path, [1, 5, "sleep"], grace=300.0, patience=30.0)  # on a busy machine it takes long to answer
    assert ended.returncode == 75, ended.stderr
    blamed = f"rank 1 ({HOST}, process {heartbeat(tmp_path, 1)['pid']}) has entered"
    assert "after step 5 a step has taken" in ended.stderr
    assert blamed in ended.stderr
    assert "while others wait in all_reduce" in ended.stderr
    assert "time.sleep(LATE" in ended.stderr
    assert blamed in report(tmp_path)
    assert "in backward" in report(tmp_path)  # what rank 0 waits in
    assert [(event["ranks"], event["hosts"], event["step"]) for event in hangs(tmp_path)] == [([1], [HOST], 5)]


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    ended = launch(tmp_path, [1, 5, "SIGSTOP"])
    assert ended.returncode == 75, ended.stderr
    pid = heartbeat(tmp_path, 1)["pid"]
    assert f"rank 1 ({HOST}, process {pid}) does not answer: stopped (SIGSTOP" in ended.stderr
    assert "last heartbeat" in report(tmp_path)
    assert process_state(pid) in ("gone", "Z", None)  # the launcher has killed it


def test_another_rank_reports_when_rank_0_is_stopped(tmp_path: Path) -> None:
    ended = launch(tmp_path, [0, 5, "SIGSTOP"])
    assert ended.returncode == 75, ended.stderr
    assert f"[rank 1] hang: rank 0 ({HOST}, process {heartbeat(tmp_path, 0)['pid']}) does not answer" in ended.stderr
    assert "all_reduce: work.wait()" in report(tmp_path)
    assert [event["ranks"] for event in hangs(tmp_path)] == [[0]]


def test_a_dead_rank_is_named_by_those_that_are_left(tmp_path: Path) -> None:
    ended = launch(tmp_path, [1, 5, "SIGKILL"], grace=300.0)  # on a busy machine it takes long to leave
    assert ended.returncode == 128 + signal.SIGKILL
    assert f"rank 1 ({HOST}, process {heartbeat(tmp_path, 1)['pid']}) is dead: killed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert heartbeat(tmp_path, 0)["followed"] == 1


def test_a_suspended_job_goes_on_and_a_slow_rank_is_named(tmp_path: Path) -> None:
    """As Slurm suspends: all ranks are stopped, for longer than a step may take."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command(tmp_path, [1, 4, "slow"], steps=30)
    started = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and started.poll() is None:
        if heartbeat_path(tmp_path / HEARTBEATS, 1).exists() and heartbeat(tmp_path, 1)["step"] > 5:
            break
        time.sleep(0.1)
    pids = [int(heartbeat(tmp_path, rank)["pid"]) for rank in range(2)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(QUICK["hang_seconds"] + 4)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    _, said = started.communicate(timeout=900)
    assert started.returncode == 0, said
    assert not list(tmp_path.glob("hang-*"))
    slow = [event for event in events(tmp_path) if event["kind"] == "slow_rank"]
    # On a machine that is busy otherwise the other rank slows down too now and then, and this one recovers by that.
    assert (slow[0]["rank"], slow[0]["host"], slow[0]["recovered"]) == (1, HOST, False)
    assert {(event["rank"], event["host"]) for event in slow} == {(1, HOST)}
    assert f"host {HOST}, rank 1, seconds" in said


# --- one rank alone ------------------------------------------------------------------------------------------------

PROGRAM = """
import ctypes, pathlib, sys, time
from pipeline.cluster.ranks import ALONE
from pipeline.progress import start_logging
from pipeline.settings.training import WatchdogSettings
from pipeline.train.watchdog import Watchdog
start_logging()
settings = WatchdogSettings(hang_seconds=1, hang_factor=2, heartbeat_seconds=0.2)
with Watchdog(pathlib.Path(sys.argv[1]), ALONE, settings) as watchdog:
    for step in (1, 2, 3):
        watchdog.beat(step)
    {hang}
"""


def alone(folder: Path, hang: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("{hang}", hang), str(folder)]


def test_one_rank_alone_tells_where_it_is_and_ends(tmp_path: Path) -> None:
    ended = run_to_end(alone(tmp_path, "time.sleep(600)"))
    assert ended.returncode == 75, ended.stderr
    assert "hang: after step 3 a step has taken" in ended.stderr
    assert "rank 0, MainThread: <string>:" in ended.stderr
    assert [event["step"] for event in hangs(tmp_path)] == [3]


def test_a_call_that_holds_the_interpreter_leaves_its_stack(tmp_path: Path) -> None:
    """What the other ranks then put into their report."""
    started = subprocess.Popen(alone(tmp_path, "ctypes.PyDLL(None).sleep(600)"))
    path, deadline = stuck_path(tmp_path / HEARTBEATS, 0), time.monotonic() + 600
    try:
        while not (path.exists() and "in <module>" in path.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        started.kill()
        started.wait()


# --- in this process -----------------------------------------------------------------------------------------------


def test_a_debugger_is_seen() -> None:
    assert not debugged()
    found: dict[str, Any] = {"debugged": debugged}
    exec(compile("found = debugged()", "/usr/lib/python3/pdb.py", "exec"), found)
    assert found["found"]


@pytest.fixture
def never_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are short here, and a busy machine may stand still for longer: the tests' own process is not ended."""
    monkeypatch.setattr(Watchdog, "_hangs", lambda self, now: False)


@pytest.mark.usefixtures("never_hangs")
def test_limits_of_steps_and_of_what_is_not_a_step(tmp_path: Path) -> None:
    settings = WatchdogSettings(hang_seconds=0.2, hang_factor=20, phase_seconds=500)
    with Watchdog(tmp_path, ALONE, settings) as watchdog:
        assert watchdog.limit() == 500  # start-up
        watchdog.beat(1)
        assert watchdog.limit() == 500  # the second step may compile too
        for step in (2, 3, 4):
            time.sleep(0.05)
            watchdog.beat(step)
        assert 1.0 <= watchdog.limit() < 500
        with watchdog.doing("validate"):
            assert watchdog.limit() == 500
        with watchdog.doing("save", limit=7.0):
            assert watchdog.limit() == 7.0
        assert 1.0 <= watchdog.limit() < 500
    assert heartbeat(tmp_path, 0)["doing"] == "ended"


@pytest.mark.usefixtures("never_hangs")
def test_steps_on_a_gpu_are_timed_where_the_host_waits_for_it(tmp_path: Path) -> None:
    with Watchdog(tmp_path, ALONE, WatchdogSettings(hang_seconds=0.01, hang_factor=2)) as watchdog:
        watchdog.beat(1)
        for step in range(2, 11):  # launched, not done
            watchdog.beat(step, synced=False)
        time.sleep(0.5)
        watchdog.beat(11)
        assert watchdog.limit() >= 1.5  # not twice the tenth of it


def test_no_limit_where_the_recipe_sets_none(tmp_path: Path) -> None:
    with Watchdog(tmp_path, ALONE, WatchdogSettings(hang_seconds=0, phase_seconds=0.1)):
        time.sleep(1.5)
    assert not list(tmp_path.glob("hang-*"))


def answer(collectives: int, waits_in: str | None, **neighbours: str) -> dict[str, Any]:
    return {
        "collectives": collectives,
        "waits_in": waits_in,
        "seconds": 9.0,
        "doing": "step",
        "last_collective": "reduce_max",
        "last_collective_seconds": 9.1,
        "neighbours": {number.removeprefix("rank"): state for number, state in neighbours.items()},
    }


PEERS = [Peer(0, "a", 10), Peer(1, "a", 11), Peer(2, "b", 12)]


def test_who_is_blamed() -> None:
    waits, works = answer(7, "all_reduce"), answer(6, None)
    assert list(blame(PEERS, {0: waits, 1: works, 2: waits})) == [1]
    assert list(blame(PEERS, {0: waits, 1: answer(7, None), 2: waits})) == [1]
    assert list(blame(PEERS, {0: works, 1: works, 2: works})) == []
    assert "number 7" in blame(PEERS, {0: waits, 1: works, 2: waits})[1]


@pytest.mark.parametrize(
    ("state", "words"),
    [("T", "stopped"), ("gone", "is dead"), ("D", "for a disk"), ("S", "holds the interpreter"), ("", "another host")],
)
def test_what_is_said_of_a_rank_that_does_not_answer(state: str, words: str) -> None:
    told = blame(PEERS, {0: answer(7, "all_reduce", rank1=state), 2: answer(7, "all_reduce")})
    assert list(told) == [1]
    assert "rank 1 (a, process 11)" in told[1]
    assert words in told[1]


def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_rank_that_ended_by_an_error_is_blamed_before_one_that_followed(tmp_path: Path) -> None:
    folder = tmp_path / HEARTBEATS
    folder.mkdir()
    peers = [Peer(0, HOST, os.getpid()), Peer(1, HOST, os.getpid()), Peer(2, HOST, os.getpid())]
    ranks = Ranks(0, 3, 0, 3, "local")
    assert lost_peer.find(folder, "now", ranks, peers, patience=0.3) is None
    beat = {"token": "now", "doing": "ended"}
    heartbeat_path(folder, 1).write_text(json.dumps({**beat, "followed": 2}))
    heartbeat_path(folder, 2).write_text(json.dumps({**beat, "error": "DataError: no such shard", "status": 2}))
    found = lost_peer.find(folder, "now", ranks, peers, patience=5)
    assert found is not None
    assert (found.rank, found.status) == (2, 2)
    assert found.words.endswith("ended first: DataError: no such shard")
    assert lost_peer.find(folder, "another start", ranks, peers, patience=0.3) is None


def test_a_network_error_is_turned_into_the_rank_that_is_gone(tmp_path: Path) -> None:
    assert lost_peer.of_network(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]"))
    assert not lost_peer.of_network(RuntimeError("shape mismatch"))
    assert not lost_peer.of_network(Stopped("Connection"))
    folder = tmp_path / HEARTBEATS
    folder.mkdir()
    gone = child()
    gone.kill()
    gone.wait()
    peers = [Peer(0, HOST, os.getpid()), Peer(1, HOST, gone.pid)]
    found = lost_peer.find(folder, "now", Ranks(0, 2, 0, 2, "local"), peers, patience=2)
    assert found is not None
    assert (found.rank, found.status) == (1, None)


def test_states_of_processes() -> None:
    process = child()
    try:
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 300
        while process_state(process.pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process_state(process.pid) == "T"
    finally:
        process.kill()
        process.wait()
    assert process_state(process.pid) == "gone"

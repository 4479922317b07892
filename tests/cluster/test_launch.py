"""The local launch with small real processes: statuses, signals, output, and no rank that outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster import launch
from pipeline.cluster.launch import environments, launch_command
from pipeline.cluster.ranks import read_ranks
from pipeline.errors import EnvironmentFault
from pipeline.progress import log
from pipeline.train.hang_report import GONE, process_state

PROGRAM = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
"""


@pytest.fixture(autouse=True)
def messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may have sent the package's messages to standard error only."""
    monkeypatch.setattr(log, "propagate", True)


def ranks(code: str, count: int = 2) -> int:
    return launch_command([sys.executable, "-c", PROGRAM + code], count)


def test_each_rank_reads_its_place() -> None:
    found = [read_ranks(environment) for environment in environments(3, 10_000)]
    assert [place.rank for place in found if place] == [0, 1, 2]
    assert {(place.world_size, place.local_world_size, place.launcher, place.port) for place in found if place} == {
        (3, 3, "local", found[0].port if found[0] else 0)
    }


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert {environment["OMP_NUM_THREADS"] for environment in environments(cores, 0)} == {"1"}
    assert environments(1, 0)[0]["OMP_NUM_THREADS"] == str(cores)


def test_all_well() -> None:
    assert ranks("pass") == 0


@pytest.mark.parametrize("status", [1, 2, 7, 75])
def test_the_first_bad_status_comes_back_and_ends_the_others(status: int) -> None:
    began = time.monotonic()
    assert ranks(f"sys.exit({status}) if rank == 1 else time.sleep(0.5 if {status} in (2, 75) else 600)") == status
    assert time.monotonic() - began < 300


def test_a_killed_rank_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert ranks("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)") == 128 + signal.SIGKILL
    assert "rank 1 was ended by SIGKILL" in caplog.text


def test_a_killed_rank_counts_also_when_the_others_leave_in_order_because_of_it() -> None:
    code = (
        "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else signal.signal(signal.SIGTERM, lambda *_: os._exit(75))"
    )
    assert ranks(code + "\ntime.sleep(60)") == 128 + signal.SIGKILL


def test_the_report_of_another_rank_is_shown_when_rank_0_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.cluster.launch.GRACE", 0.5)
    assert ranks("os.kill(os.getpid(), signal.SIGSTOP) if rank == 0 else (print('a hang'), sys.exit(75))") == 75
    assert "[rank 1] a hang" in caplog.text


def test_what_another_rank_said_is_shown_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    assert ranks("rank and sys.exit('disk full')") == 1
    assert "[rank 1] disk full" in caplog.text


def test_a_rank_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.launch.GRACE", 0.5)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN) if rank == 0 else sys.exit(1)\ntime.sleep(600)"
    began = time.monotonic()
    assert ranks(code) == 1
    assert time.monotonic() - began < 300


LAUNCHER = """
import sys
from pipeline.cluster.launch import launch_command
sys.exit(launch_command([sys.executable, "-c", sys.argv[1]], 2))
"""


def started(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """A launcher in a process of its own, once both of its ranks have written their process ids into `folder`."""
    write = f"open(r'{folder}/' + str(rank), 'w').write(str(os.getpid()))\n"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, PROGRAM + code.replace("READY", write)])
    while len([path for path in folder.iterdir() if path.read_text()]) < 2:
        assert launcher.poll() is None
        time.sleep(0.05)
    return launcher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on_once(tmp_path: Path, number: signal.Signals) -> None:
    launcher = started(f"signal.signal({int(number)}, lambda *_: sys.exit(75))\nREADY\ntime.sleep(600)", tmp_path)
    launcher.send_signal(number)
    assert launcher.wait(timeout=300) == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_is_still_starting_when_the_signal_comes_has_stopped_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It cannot answer yet, and the signal ends it, before the other one has saved: the command has not failed."""
    answers = f"rank or signal.signal({int(number)}, lambda *_: (time.sleep(1), sys.exit(75)))"
    launcher = started(f"{answers}\nREADY\ntime.sleep(600)", tmp_path)
    launcher.send_signal(number)
    assert launcher.wait(timeout=300) == 75


def test_a_second_signal_reaches_the_ranks_too(tmp_path: Path) -> None:
    """A rank that saves for too long is ended by it; that is no stop in order."""
    once = "signal.signal(15, lambda *_: (signal.signal(15, signal.SIG_DFL), open(asked, 'w').close()))"
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    code = f"asked = r'{tmp_path}/asked-' + str(rank)\n{once}\nREADY\nwhile True: time.sleep(0.05)"
    launcher = started(code, ranks)
    launcher.terminate()
    while len(list(tmp_path.glob("asked-*"))) < 2:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.terminate()
    assert launcher.wait(timeout=300) == 128 + signal.SIGTERM


EARLY = """
import os, signal, sys
from pipeline.cluster import launch
start = launch._start
def interrupted(*arguments):  # a signal that comes while a rank is being started
    rank = start(*arguments)
    if rank.number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)
    return rank
launch._start = interrupted
sys.exit(launch.launch_command([sys.executable, "-c", sys.argv[1]], 2))
"""


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_that_comes_while_ranks_are_started_reaches_all_of_them(number: int) -> None:
    words = [sys.executable, "-c", EARLY, "import time; time.sleep(600)", str(number)]
    assert subprocess.run(words, check=False, timeout=300).returncode == 75


def test_statuses_count_also_where_the_signal_of_children_is_ignored() -> None:
    ignores = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)" + LAUNCHER
    words = [sys.executable, "-c", ignores, "import os, sys; sys.exit(7 * int(os.environ['RANK']))"]
    assert subprocess.run(words, check=False, timeout=300).returncode == 7


def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = started("READY\ntime.sleep(600)", tmp_path)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 120
    while any(process_state(int(path.read_text())) not in GONE for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ports_are_free_and_not_those_that_the_kernel_gives_away(monkeypatch: pytest.MonkeyPatch) -> None:
    port = launch.free_port()
    assert port < 32768
    monkeypatch.setattr(launch, "PORTS", range(port, port + 1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(EnvironmentFault, match=f"no TCP port from {port} to {port} is free"):
            launch.free_port()


@pytest.mark.parametrize("libuv", [True, False])
def test_a_port_that_is_held_is_the_ranks_own(monkeypatch: pytest.MonkeyPatch, libuv: bool) -> None:
    from torch.distributed import TCPStore

    with contextlib.ExitStack() as held:
        port = launch.free_port(held)
        monkeypatch.setattr(launch, "PORTS", range(port, port + 1))
        with pytest.raises(EnvironmentFault, match=f"no TCP port from {port} to {port} is free"):
            launch.free_port()
        TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, use_libuv=libuv)

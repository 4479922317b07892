"""A cluster that tools/slurm_cluster started, and jobs on it: what a person does by hand, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command import PROJECT, clean_environment

from pipeline.files import write_text

CLUSTER = PROJECT / "tools" / "slurm_cluster"
SCRIPTS = PROJECT / "slurm"
HALTING = Path(__file__).with_name("halting.py")
STEPS = 60  # of the trainings that are interrupted
PATIENT = "preflight.wait_seconds=300"  # ranks on two busy cores may come a minute after each other
WORDS = (f"pretrain.tokens={STEPS * 1024}", "pretrain.log_interval=5", "pretrain.validation_interval=20")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE"}
PATIENCE = 400.0  # seconds; a busy machine is several times slower than a quiet one
PAUSE = 0.5  # seconds between two questions to the controller: each starts five processes beside the ranks
Prepared = Callable[[Path], Path]
Unbroken = Callable[[int], dict[int, float]]


def missing() -> str | None:
    """Why there can be no cluster here; None when there can."""
    if os.geteuid() != 0:
        return "a virtual Slurm cluster needs root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in ("sbatch", "slurmctld", "slurmd", "munged", "ip") if not shutil.which(name, path=path)]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm munge iproute2)" if absent else None


def until(true: Callable[[], object], what: str, pause: float = 0.1, shown: Callable[[], str] = lambda: "") -> None:
    """Look again and again; fail when it does not become true, saying what is `shown` then."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}\n{shown()}"
        time.sleep(pause)


class Cluster:
    """tools/slurm_cluster with its state in a folder of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = clean_environment(SLURM_CLUSTER=str(state))
        python = state.parent / "python"
        python.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{HALTING}' \"$@\"\n", encoding="utf-8")
        python.chmod(0o755)
        self.environment["HEADWATER_PYTHON"] = str(python)

    def call(self, *words: str, cwd: Path = PROJECT, **environment: str) -> str:
        """tools/slurm_cluster WORDS…; its output."""
        done = self.try_call(*words, cwd=cwd, **environment)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_call(self, *words: str, cwd: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same, where it may fail."""
        return subprocess.run(
            [str(CLUSTER), *words],
            env=self.environment | environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def ask(self, *words: str) -> str:
        """A question to the controller; asked again while it is too busy to answer (it is given two seconds here)."""
        deadline = time.monotonic() + PATIENCE
        while (done := self.try_call("exec", *words)).returncode:
            assert time.monotonic() < deadline, f"{words}: {done.stdout}{done.stderr}"
            time.sleep(0.5)
        return done.stdout

    def submit(self, log: Path, *words: str, **environment: str) -> Job:
        """`sbatch WORDS…`, saying all into `log`; its folder is where sbatch is called."""
        command = ("exec", "sbatch", "--parsable", f"--output={log}", *words)
        identity = self.call(*command, cwd=log.parent, **environment).strip()
        return Job(self, identity, log)

    def all_idle(self) -> bool:
        """Whether every node waits for work."""
        nodes = self.ask("sinfo", "--noheader", "--partition=all", "--Node", "--format=%T").split()
        return set(nodes) == {"idle"}

    def state_of_all(self) -> str:
        """Nodes and jobs as Slurm shows them, and why nodes are not there."""
        commands = (("sinfo", "--Node", "--long"), ("sinfo", "--list-reasons"), ("squeue", "--all"))
        return "\n".join(self.ask(*command) for command in commands)


@dataclass(frozen=True)
class Job:
    """One job, through all its starts."""

    cluster: Cluster
    identity: str
    log: Path

    def shown(self, field: str) -> str:
        """What `scontrol show job` says, such as JobState or Restarts."""
        text = self.cluster.ask("scontrol", "--oneliner", "show", "job", self.identity)
        return f" {text}".split(f" {field}=", 1)[1].split()[0]

    def minutes(self) -> int:
        """Whole minutes since this start of it; of less than a day."""
        hours, minutes, _ = self.shown("RunTime").split(":")
        return 60 * int(hours) + int(minutes)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def end(self) -> str:
        """Wait for its end; returns its state."""
        states: list[str] = []

        def ended() -> bool:
            states.append(self.shown("JobState"))
            return states[-1] in ENDED

        until(ended, f"the end of job {self.identity}\n{self.said()[-4000:]}", PAUSE)
        return states[-1]

    def wait_for_start(self, number: int) -> None:
        """Wait until its `number`-th start (from 1) is at work."""
        until(lambda: f": start {number}, " in self.said(), f"start {number}\n{self.said()[-4000:]}")

    def control(self, word: str) -> None:
        """scontrol WORD JOB"""
        self.cluster.call("exec", "scontrol", word, self.identity)

    def update(self, change: str) -> None:
        """scontrol update of this job, such as TimeLimit=3"""
        self.cluster.call("exec", "scontrol", "update", f"JobId={self.identity}", change)


@dataclass(frozen=True)
class Rank:
    """A process that trains, found by its heartbeat."""

    cluster: Cluster
    host: str
    pid: int

    def alive(self) -> bool:
        return self.cluster.try_call("on", self.host, "kill", "-0", str(self.pid)).returncode == 0

    def state(self) -> str:
        """As /proc shows it: R, S, T (stopped) …"""
        text = self.cluster.call("on", self.host, "cat", f"/proc/{self.pid}/status")
        return text.split("State:", 1)[1].split()[0]

    def signal(self, name: str) -> None:
        self.cluster.call("on", self.host, "kill", f"-{name}", str(self.pid))


def found_rank(cluster: Cluster, folder: Path, rank: int) -> Rank:
    """A rank at work, by its heartbeat, which may just be written anew."""
    path, found = folder / "heartbeats" / f"rank-{rank:05d}.json", []

    def read() -> bool:
        with contextlib.suppress(ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return bool(found)

    until(read, f"a heartbeat of rank {rank}", pause=0.01)
    return Rank(cluster, found[0]["host"], found[0]["pid"])


def stop_rank(cluster: Cluster, folder: Path, rank: int, step: int, host: str = "") -> Rank:
    """One of the ranks stops itself once training has come to `step` (on `host`, if given; halting.py).

    The others wait for it, so that what a test does next meets a training at work, however quick the machine is. Slurm
    sends SIGCONT before SIGUSR1 and SIGTERM, which wakes it.
    """
    asked = folder.parent / f"halt-{rank}"
    write_text(asked, f"{step} {host}")
    until(lambda: not asked.exists(), f"rank {rank} at step {step}", pause=0.01)
    found = found_rank(cluster, folder, rank)
    until(lambda: found.state() == "T", f"rank {rank} to be stopped", pause=0.01)
    return found


def losses(folder: Path) -> dict[int, float]:
    """Each step's loss; asserts that none is there twice and none is missing."""
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(len(steps)))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}

"""Preflight: seconds at a job's start in which every node is looked at and a bad one is named.

Rank 0 leads; the others answer through notes in a store (rendezvous.py), so that a rank that hangs, dies or never
comes is named too. The network is tried last, in a thread of its own, since a collective over a sick link does not
come back.
"""

from __future__ import annotations

import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.device import Device, find_device, matmul_peak
from pipeline.cluster.node_list import expected_hosts
from pipeline.cluster.preflight import shared_folder
from pipeline.cluster.preflight.bandwidth import PAIRS_SECONDS
from pipeline.cluster.preflight.network import Network
from pipeline.cluster.preflight.node import Place, describe, host_name
from pipeline.cluster.preflight.rendezvous import Meeting, Over, Silent, meet
from pipeline.cluster.preflight.slow_links import judge_links
from pipeline.cluster.preflight.verdict import Report, compare, hosts_of, judge_clocks, judge_sharing, name_absent
from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault, Unfit
from pipeline.settings.cluster import PreflightSettings

PINGS = 5  # to each node, for its clock
ANSWER_SECONDS = 20.0  # for a rank that has come already, beyond what it was asked to do
FAREWELL_SECONDS = 10.0
FLOOR = {"cpu": 0.05, "cuda": 5.0}  # GB/s between nodes under which pairs are measured, where the recipe says nothing


def preflight(
    ranks: Ranks,
    settings: PreflightSettings,
    folder: Path,
    tell: Callable[[Report], None],
    now: Callable[[], float] = time.time,
) -> int:
    """Look at all nodes; every rank must call it. folder: the run directory; tell: rank 0 shows the report with it.

    Returns the exit status, the same on all ranks: 0 or Unfit.status.
    Raises: Unfit when rank 0 does not answer.
    """
    began = time.monotonic()
    meeting = meet(ranks, settings.wait_seconds)
    check = _Check(ranks, settings, folder, meeting, now)
    if not ranks.first:
        try:
            with suppress(Over):
                check.answer()
            status = int(meeting.read("status", 0, 2 * settings.wait_seconds + ANSWER_SECONDS))
        except Silent as silent:
            raise Unfit(f"rank {ranks.rank} waits no longer: {silent}") from None
        meeting.put("farewell", True)
        check.leave(status)
        return status
    report = check.lead()
    report.seconds = time.monotonic() - began
    tell(report)
    meeting.put("status", report.status())
    # Rank 0 holds the store: it leaves when all have read the verdict, or are gone.
    meeting.collect("farewell", check.present - {0}, FAREWELL_SECONDS)
    check.leave(report.status())
    return report.status()


class _Check:
    """One rank's part of it."""

    def __init__(
        self,
        ranks: Ranks,
        settings: PreflightSettings,
        folder: Path,
        meeting: Meeting,
        now: Callable[[], float],
    ) -> None:
        self.ranks, self.settings, self.folder, self.meeting, self.now = ranks, settings, folder, meeting, now
        self.patience = settings.wait_seconds
        self.present = {ranks.rank}  # ranks that came and have not fallen silent since
        self.network: Network | None = None

    # --- rank 0 ----------------------------------------------------------------------------------------------------

    def lead(self) -> Report:
        """Ask the others, step by step, and judge."""
        report = Report(self.ranks.world_size, self.ranks.launcher, str(self.folder))
        self.meeting.put("here", self._here())
        everyone = range(self.ranks.world_size)
        here, absent = self.meeting.collect("here", everyone, self.patience)
        self.meeting.put("place", self._look_around())
        found, silent = self.meeting.collect("place", here, self.patience)
        report.places = [found[rank] for rank in sorted(found) if "error" not in found[rank]]
        name_absent(report, here, absent, expected_hosts(), self.patience)
        for rank in silent:
            report.bad(
                here[rank]["host"], f"rank {rank} came, but its device has not answered in {self.patience:.0f} s"
            )
        for rank, place in found.items():
            if "error" in place:
                report.bad(here[rank]["host"], f"rank {rank}: {place['error']}")
        if report.places:
            compare(report, self.settings)
        self.present = set(here) - set(silent)
        if len(report.places) < self.ranks.world_size:
            self.meeting.put("go", None)
            return report
        leaders = {host: min(place["rank"] for place in places) for host, places in hosts_of(report.places).items()}
        name = f"preflight-{secrets.token_hex(4)}.tmp"
        self.meeting.put("go", {"leaders": leaders, "name": name})
        try:
            self._read_clocks(report, leaders)
            self._share(report, leaders, self.folder / name)
            self._measure(report, leaders)
        except Silent as silent:
            self.present.discard(silent.rank)
            report.bad(here[silent.rank]["host"], f"{silent}: it has died or hangs")
        return report

    def _read_clocks(self, report: Report, leaders: Mapping[str, int]) -> None:
        for host, rank in leaders.items():
            differences = []
            for ping in range(PINGS) if rank != 0 else ():
                before = self.now()
                self.meeting.put(f"ping/{rank}/{ping}", True)
                theirs = self.meeting.read(f"pong/{ping}", rank, ANSWER_SECONDS)
                differences.append(theirs - (before + self.now()) / 2)
            report.clocks[host] = statistics.median(differences) if differences else 0.0
        judge_clocks(report, self.settings)

    def _share(self, report: Report, leaders: Mapping[str, int], folder: Path) -> None:
        self._write_note(folder)
        noted, silent = self.meeting.collect("noted", leaders.values(), ANSWER_SECONDS)
        if silent:
            raise Silent(silent[0], f"has not written into {self.folder}")
        hosts = {rank: host for host, rank in leaders.items()}
        for rank, note in noted.items():
            if "error" in note:
                report.bad(hosts[rank], f"cannot write into {self.folder}: {note['error']}")
        nonces = {hosts[rank]: note["nonce"] for rank, note in noted.items() if "nonce" in note}
        with shared_folder.locked(folder) as held:
            self.meeting.put("look", nonces)
            self.meeting.put("seen", {"seen": shared_folder.seen(folder, nonces), "lock": held})
            patience = shared_folder.LOOK_SECONDS + ANSWER_SECONDS
            answers, silent = self.meeting.collect("seen", leaders.values(), patience)
        self.meeting.put("looked", True)
        shared_folder.clear(folder, host_name())
        if silent:
            raise Silent(silent[0], f"has not read from {self.folder}")
        sights = {hosts[rank]: answer["seen"] for rank, answer in answers.items() if hosts[rank] in nonces}
        judge_sharing(report, sights, {hosts[rank]: answer["lock"] for rank, answer in answers.items()}, hosts[0])

    def _measure(self, report: Report, leaders: Mapping[str, int]) -> None:
        self._try_network(leaders)
        answers, silent = self.meeting.collect("network", range(self.ranks.world_size), self._network_patience())
        hosts = {place["rank"]: place["host"] for place in report.places}
        errors = {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
        self.present -= set(silent)
        for rank in silent:
            report.bad(hosts[rank], f"rank {rank} has died or hangs in a collective")
        if errors and not silent:
            looped = [place["host"] for place in report.places if place["address"].startswith("127.")]
            for host in sorted(set(looped)) if len(set(looped)) < len(leaders) else ():
                report.bad(host, "its own name leads to 127.x: no other node can reach it; mend its /etc/hosts")
            rank, error = next(iter(errors.items()))
            report.fault(
                f"the ranks cannot talk to each other: rank {rank} on {hosts[rank]} says: {error} "
                f"(of {len(errors)} ranks; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network)"
            )
        if errors or silent:
            return
        report.all_reduce = [(size, speed) for size, speed in answers[0]["all_reduce"]]
        speeds = {tuple(pair): speed for answer in answers.values() for pair, speed in answer["pairs"]}
        report.pairs = {" ".join(pair): speed for pair, speed in speeds.items()}
        if len(leaders) > 1:
            judge_links(report, speeds, self._floor(report.places[0]["kind"]), self.settings.min_bandwidth is not None)

    # --- every rank ------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        """What ranks other than 0 do. Raises: Silent when rank 0 does not ask."""
        self.meeting.put("here", self._here())
        self.meeting.put("place", self._look_around())
        go = self.meeting.read("go", 0, 2 * self.patience + ANSWER_SECONDS)
        if go is None:
            return
        if self.ranks.rank in go["leaders"].values():
            for ping in range(PINGS):
                self.meeting.read(f"ping/{self.ranks.rank}/{ping}", 0, self.patience)
                self.meeting.put(f"pong/{ping}", self.now())
            folder = self.folder / go["name"]
            self._write_note(folder)
            nonces = self.meeting.read("look", 0, self.patience)
            self.meeting.put("seen", self._see(folder, nonces))
            self.meeting.read("looked", 0, self.patience)  # others may still look for our file
            shared_folder.clear(folder, host_name())
        self._try_network(go["leaders"])

    def leave(self, status: int) -> None:
        """Where a collective still hangs, end the process: nothing else ends that thread."""
        if self.network and self.network.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _here(self) -> dict[str, Any]:
        return {"host": host_name(), "expects": self.ranks.local_world_size}

    def _look_around(self) -> dict[str, Any]:
        try:
            self.device = find_device(self.ranks)
            place = describe(self.ranks, self.device, self.folder)
        except (EnvironmentFault, RuntimeError) as error:
            return {"error": " ".join(str(error).split())[:300]}
        return asdict(_with_speed(place, self.device))

    def _write_note(self, folder: Path) -> None:
        nonce = secrets.token_hex(8)
        try:
            shared_folder.note(folder, host_name(), nonce)
            self.meeting.put("noted", {"nonce": nonce})
        except OSError as error:
            self.meeting.put("noted", {"error": error.strerror})

    def _see(self, folder: Path, nonces: dict[str, str]) -> dict[str, Any]:
        seen = shared_folder.seen(folder, nonces)
        with shared_folder.locked(folder) as free:
            return {"seen": seen, "lock": free}

    def _floor(self, kind: str) -> float:
        return self.settings.min_bandwidth or FLOOR[kind]

    def _network_patience(self) -> float:
        return self.patience + PAIRS_SECONDS

    def _try_network(self, leaders: Mapping[str, int]) -> None:
        """Connect and measure in a thread; leave a note of what came out, if it comes back."""
        self.network = Network(self.ranks, self.device, leaders, self._floor(self.device.kind), self.patience)
        self.network.start()
        self.network.join(self._network_patience())
        if not self.network.is_alive():
            self.meeting.put("network", self.network.outcome)


def _with_speed(place: Place, device: Device) -> Place:
    """Measure the device; one that fails at a matrix product says so among its faults."""
    try:
        return replace(place, speed=matmul_peak(device, torch.bfloat16 if device.bf16 else torch.float32))
    except RuntimeError as error:
        return replace(place, faults=[*place.faults, f"a matrix product fails: {str(error).splitlines()[0]}"])

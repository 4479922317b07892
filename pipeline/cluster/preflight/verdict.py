"""What preflight concludes from what it has measured: which node is bad and why; pure, no torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import Unfit
from pipeline.settings.cluster import PreflightSettings

BAD, FAULT, WARNING = "bad node", "fault", "warning"
LESS = 0.9  # of the median: under this a node has less memory than the others (GPUs: bad; hosts: a warning)
SMALL_SHM = 64 * 2**20  # Docker's default /dev/shm, too small for workers and for NCCL between GPUs of a host
SLOW_CPU = 0.5  # of the median; a CPU may be shared with others


@dataclass(frozen=True)
class Problem:
    """kind: `bad node` (host is named), `fault` (not one node's) or `warning`."""

    kind: str
    text: str
    host: str | None = None

    def line(self) -> str:
        return f"{self.kind}: {self.host}: {self.text}" if self.host else f"{self.kind}: {self.text}"


@dataclass
class Report:
    """All that was found. places: one a rank, as Place's fields; seconds: how long it took."""

    world_size: int
    launcher: str
    folder: str
    places: list[dict[str, Any]] = field(default_factory=list)
    clocks: dict[str, float] = field(default_factory=dict)
    """host → seconds ahead of rank 0's clock"""
    shared: bool | None = None
    locks: bool | None = None
    """Whether a lock taken on one node is respected on the others; None: one node."""
    all_reduce: list[tuple[int, float]] = field(default_factory=list)
    """(bytes, bus bandwidth in GB/s)"""
    pairs: dict[str, float] = field(default_factory=dict)
    """`node1 node2` → GB/s"""
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0

    def bad_nodes(self) -> list[str]:
        """Names, each once."""
        return sorted({problem.host for problem in self.problems if problem.kind == BAD and problem.host})

    def status(self) -> int:
        """0, or Unfit.status."""
        return Unfit.status if any(problem.kind in (BAD, FAULT) for problem in self.problems) else 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "bad_nodes": self.bad_nodes(), "status": self.status()}

    def bad(self, host: str, text: str) -> None:
        self.problems.append(Problem(BAD, text, host))

    def bad_or_warn(self, bad: bool) -> Callable[[str, str], None]:
        """How to say what only matters on some machines: call it with host and text."""
        return self.bad if bad else lambda host, text: self.warn(text, host)

    def fault(self, text: str) -> None:
        self.problems.append(Problem(FAULT, text))

    def warn(self, text: str, host: str | None = None) -> None:
        self.problems.append(Problem(WARNING, text, host))


def hosts_of(places: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Host → its ranks' places, in the order of ranks."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for place in places:
        found.setdefault(place["host"], []).append(place)
    return found


def odd_ones(values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What most hosts have, and the hosts that have something else; of two equally common what the first host has."""
    common, count = Counter(values.values()).most_common(1)[0]
    first = next(iter(values.values()))
    if Counter(values.values())[first] == count:
        common = first
    return common, [host for host, value in values.items() if value != common]


def compare(report: Report, settings: PreflightSettings) -> None:
    """Add what the nodes' own descriptions tell: who differs from most, who has too little."""
    nodes = hosts_of(report.places)
    _compare_versions(report, nodes)
    for key, words in (("kind", "computes on {}"), ("devices", "shows {} devices to a rank"), ("device", "has {}")):
        common, odd = odd_ones({host: ranks[0][key] for host, ranks in nodes.items()})
        for host in odd:
            value = nodes[host][0][key]
            # Processors of several makes are one cluster's everyday; GPUs of several kinds are a mistake.
            say = report.bad_or_warn(nodes[host][0]["kind"] == "cuda" or key == "kind")
            say(host, f"{words.format(value)}, most nodes {common}")
    for key, words in (("memory", "memory"), ("device_memory", "device memory")):
        usual = statistics.median_high(min(place[key] for place in ranks) for ranks in nodes.values())
        for host, ranks in nodes.items():
            least = min(place[key] for place in ranks)
            if least < LESS * usual and not (key == "device_memory" and ranks[0]["kind"] == "cpu"):
                say = report.bad_or_warn(ranks[0]["kind"] == "cuda" and key == "device_memory")
                say(host, f"{least / 2**30:.1f} GiB of {words}, others have {usual / 2**30:.1f}")
    for host, ranks in nodes.items():
        for fault in sorted({fault for place in ranks for fault in place["faults"]}):
            report.bad(host, fault)
    _compare_space(report, nodes, settings)
    _compare_speeds(report, settings)


def name_absent(
    report: Report, here: Mapping[int, Any], absent: list[int], expected: list[str], patience: float
) -> None:
    """Name the hosts of ranks that did not come.

    here: by rank, its host and how many ranks it expects there; expected: the hosts of the job, where Slurm says so.
    """
    if not absent:
        return
    came = Counter(note["host"] for note in here.values())
    expects = {note["host"]: note["expects"] for note in here.values()}
    words = f"within {patience:.0f} s (missing: rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))})"
    empty = [host for host in expected if host not in came]
    short = [host for host in came if came[host] < expects[host]]
    for host in empty:
        report.bad(host, f"none of its ranks came {words}")
    for host in short:
        report.bad(host, f"{came[host]} of its {expects[host]} ranks came {words}")
    if not empty and not short:
        report.fault(f"not all ranks came {words}; came: {', '.join(sorted(came))}")


def judge_clocks(report: Report, settings: PreflightSettings) -> None:
    """Name nodes whose clock is off. Where most nodes differ from rank 0's, it is rank 0's that is off."""
    with_rank_0 = sum(abs(ahead) <= settings.clock_seconds for ahead in report.clocks.values())
    usual = 0.0 if 2 * with_rank_0 >= len(report.clocks) else statistics.median(report.clocks.values())
    for host, ahead in report.clocks.items():
        difference = ahead - usual
        if abs(difference) > settings.clock_seconds:
            words = "ahead of" if difference > 0 else "behind"
            report.bad(host, f"its clock is {abs(difference):.1f} s {words} the others'; start NTP there")


def judge_sharing(report: Report, sights: Mapping[str, list[str]], locks: Mapping[str, Any], holder: str) -> None:
    """Name nodes that have another folder under the run directory's name, and say whether locks hold.

    sights: by node, whose files it sees; locks: by node whether the lock that `holder` took first was free, or what the
    system said.
    """
    groups = groups_of(sights)
    report.shared = len(groups) == 1
    for group in groups[1:]:
        for host in group:
            most = ", ".join(groups[0][:3])
            report.bad(host, f"{report.folder} is not the folder that {most} see under this name")
    with_holder = next((group for group in groups if holder in group), [])
    tried = {host: lock for host, lock in locks.items() if host in with_holder}
    for host, lock in tried.items():
        if isinstance(lock, str):
            report.warn(f"locks do not work in {report.folder}: {lock}", host)
    answers = [lock for host, lock in tried.items() if isinstance(lock, bool) and host != holder]
    if answers and tried[holder] is True:
        report.locks = not any(answers)
        if not report.locks:
            report.warn(f"{report.folder}: a lock taken on one node does not hold on the others")


def groups_of(sights: Mapping[str, list[str]]) -> list[list[str]]:
    """Nodes that see each other's files, the largest group first; of equal ones that of the first node."""
    left = list(sights)
    found: list[list[str]] = []
    while left:
        first = left[0]
        group = [host for host in left if host == first or (host in sights[first] and first in sights[host])]
        found.append(group)
        left = [host for host in left if host not in group]
    return sorted(found, key=len, reverse=True)


def _compare_versions(report: Report, nodes: Mapping[str, list[Mapping[str, Any]]]) -> None:
    names = sorted({name for place in report.places for name in place["versions"]})
    for name in names:
        found = {host: sorted({p["versions"].get(name, "none") for p in ranks}) for host, ranks in nodes.items()}
        common, odd = odd_ones({host: ", ".join(values) for host, values in found.items()})
        for host in odd:
            report.bad(host, f"{name} {', '.join(found[host])}, most have {common}")
        for host, values in found.items():
            if len(values) > 1 and host not in odd:
                report.bad(host, f"its ranks have different versions of {name}: {', '.join(values)}")


def _compare_space(report: Report, nodes: Mapping[str, list[Mapping[str, Any]]], settings: PreflightSettings) -> None:
    need = settings.min_free_gb * 1e9
    free = {host: ranks[0]["free_run"] for host, ranks in nodes.items() if ranks[0]["free_run"] is not None}
    if free and min(free.values()) < need:
        report.fault(
            f"{report.folder}: {min(free.values()) / 1e9:.1f} GB free, less than {settings.min_free_gb:g} "
            "(preflight.min_free_gb); free some, or set workdir=…"
        )
    for host, ranks in nodes.items():
        tmp, shm = ranks[0]["free_tmp"], ranks[0]["shm"]
        if tmp is not None and tmp < need:
            report.warn(f"{tmp / 1e9:.1f} GB free in its /tmp", host)
        if shm is not None and shm <= SMALL_SHM and len(ranks) > 1:
            report.warn(f"/dev/shm has {shm / 2**20:.0f} MiB; give the container more (--shm-size, --ipc=host)", host)


def _compare_speeds(report: Report, settings: PreflightSettings) -> None:
    speeds = [place["speed"] for place in report.places if place["speed"]]
    if len(speeds) < 2:
        return
    usual = statistics.median(speeds)
    for place in report.places:
        share = place["speed"] / usual
        text = f"device of rank {place['rank']} runs at {share:.0%} of the median speed"
        if place["kind"] == "cuda" and 0 < share < settings.min_speed:
            report.bad(place["host"], text)
        elif place["kind"] == "cpu" and 0 < share < min(SLOW_CPU, settings.min_speed):
            report.warn(text, place["host"])

"""What preflight concludes: one small case a rule, no process."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.cluster.preflight.table import lines
from pipeline.cluster.preflight.verdict import Report, compare, groups_of, judge_clocks, judge_sharing, name_absent
from pipeline.errors import Unfit
from pipeline.settings.cluster import PreflightSettings

SETTINGS = PreflightSettings()
GIB = 2**30


def place(rank: int, **changes: Any) -> dict[str, Any]:
    """A rank on an 8-GPU node of its own, in good health."""
    good: dict[str, Any] = {
        "rank": rank,
        "local_rank": 0,
        "host": f"node{rank + 1}",
        "address": f"10.0.0.{rank + 1}",
        "kind": "cuda",
        "device": "NVIDIA H100 80GB HBM3",
        "devices": 8,
        "device_memory": 80 * GIB,
        "memory": 1000 * GIB,
        "versions": {"torch": "2.13.0", "nccl": "2.28.3"},
        "free_run": 10**13,
        "free_tmp": 10**12,
        "shm": 500 * GIB,
        "faults": [],
        "speed": 6e14,
    }
    return good | changes


def judged(*changes: dict[str, Any], nodes: int = 4) -> Report:
    """The report of `nodes` nodes, the last ones with `changes`."""
    rows = [place(rank) for rank in range(nodes)]
    for row, change in zip(reversed(rows), changes, strict=False):
        row.update(change)
    report = Report(nodes, "srun", "runs/x", places=rows)
    compare(report, SETTINGS)
    return report


def test_good_nodes_have_no_problems() -> None:
    assert judged().problems == []
    assert judged().status() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"torch": "2.12.0", "nccl": "2.28.3"}}, "torch 2.12.0, most have 2.13.0"),
        ({"versions": {"torch": "2.13.0"}}, "nccl none, most have 2.28.3"),
        ({"devices": 7}, "shows 7 devices to a rank, most nodes 8"),
        ({"device": "NVIDIA A100"}, "has NVIDIA A100, most nodes NVIDIA H100 80GB HBM3"),
        ({"device_memory": 40 * GIB}, "40.0 GiB of device memory, others have 80.0"),
        ({"kind": "cpu", "speed": 0.0}, "computes on cpu, most nodes cuda"),
        ({"faults": ["GPU 3: uncorrected memory errors (2)"]}, "GPU 3: uncorrected memory errors (2)"),
        ({"speed": 3e14}, "device of rank 3 runs at 50% of the median speed"),
    ],
)
def test_a_node_unlike_the_others_is_bad(change: dict[str, Any], said: str) -> None:
    report = judged(change)
    assert [problem.line() for problem in report.problems] == [f"bad node: node4: {said}"]
    assert report.bad_nodes() == ["node4"]
    assert report.status() == Unfit.status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory": 500 * GIB}, "500.0 GiB of memory, others have 1000.0"),
        ({"free_tmp": 10**8}, "0.1 GB free in its /tmp"),
    ],
)
def test_what_may_be_meant_is_a_warning(change: dict[str, Any], said: str) -> None:
    report = judged(change)
    assert [problem.line() for problem in report.problems] == [f"warning: node4: {said}"]
    assert report.status() == 0


def test_several_makes_of_processors_are_no_fault() -> None:
    cpu = {"kind": "cpu", "devices": 2, "device": "Xeon", "speed": 1e12}
    report = judged(cpu | {"device": "EPYC", "devices": 4, "speed": 1e11}, cpu, cpu, cpu)
    assert {problem.kind for problem in report.problems} == {"warning"}


def test_ranks_of_one_node_with_different_versions() -> None:
    rows = [place(0), place(1), place(2), place(3, host="node1", versions={"torch": "2.12.0", "nccl": "2.28.3"})]
    report = Report(4, "srun", "runs/x", places=rows)
    compare(report, SETTINGS)
    assert [problem.line() for problem in report.problems] == [
        "bad node: node1: torch 2.12.0, 2.13.0, most have 2.13.0"
    ]


def test_no_room_is_a_fault_of_the_run_directory() -> None:
    report = judged(*({"free_run": 10**8} for _ in range(4)))
    assert report.bad_nodes() == []
    assert report.status() == Unfit.status
    assert report.problems[0].line().startswith("fault: runs/x: 0.1 GB free")


def test_ranks_that_do_not_come() -> None:
    here = {0: {"host": "node1", "expects": 2}, 1: {"host": "node1", "expects": 2}, 2: {"host": "node2", "expects": 2}}
    report = Report(6, "srun", "runs/x")
    name_absent(report, here, [3, 4, 5], ["node1", "node2", "node3"], 60)
    assert [problem.line() for problem in report.problems] == [
        "bad node: node3: none of its ranks came within 60 s (missing: ranks 3, 4, 5)",
        "bad node: node2: 1 of its 2 ranks came within 60 s (missing: ranks 3, 4, 5)",
    ]
    unknown = Report(3, "torchrun", "runs/x")
    name_absent(unknown, {0: {"host": "a", "expects": 1}, 1: {"host": "b", "expects": 1}}, [2], [], 60)
    assert "not all ranks came within 60 s (missing: rank 2); came: a, b" in unknown.problems[0].line()


@pytest.mark.parametrize(
    ("clocks", "bad"),
    [
        ({"a": 0.0, "b": 0.4, "c": -0.4}, []),
        ({"a": 0.0, "b": 30.0, "c": 0.0}, ["b"]),
        ({"a": 0.0, "b": -30.0}, ["b"]),
        ({"a": 0.0, "b": 30.0, "c": 30.1}, ["a"]),  # rank 0's own
    ],
)
def test_clocks(clocks: dict[str, float], bad: list[str]) -> None:
    report = Report(3, "srun", "runs/x", clocks=clocks)
    judge_clocks(report, SETTINGS)
    assert report.bad_nodes() == bad


def test_a_folder_that_is_not_shared() -> None:
    report = Report(3, "srun", "runs/x")
    judge_sharing(
        report, {"a": ["a", "c"], "b": ["b"], "c": ["a", "c"]}, {"a": True, "b": True, "c": False}, holder="a"
    )
    assert (report.shared, report.locks, report.bad_nodes()) == (False, True, ["b"])


def test_locks_that_hold_on_one_node_only_are_a_warning() -> None:
    report = Report(2, "srun", "runs/x")
    judge_sharing(report, {"a": ["a", "b"], "b": ["a", "b"]}, {"a": True, "b": True}, holder="a")
    assert (report.shared, report.locks, report.status()) == (True, False, 0)
    assert "a lock taken on one node does not hold on the others" in report.problems[0].line()


def test_groups_see_each_other_both_ways() -> None:
    assert groups_of({"a": ["a", "b"], "b": ["b"], "c": ["c"]}) == [["a"], ["b"], ["c"]]
    assert groups_of({"a": ["a"], "b": ["b", "c"], "c": ["b", "c"]}) == [["b", "c"], ["a"]]


def test_the_table_fits_and_shows_the_worst_first() -> None:
    report = judged({"devices": 7}, {"free_tmp": 10**8})
    report.all_reduce = [(10**6, 12.0), (16 * 10**6, 180.0)]
    shown = list(lines(report))
    assert max(map(len, shown)) <= 100
    assert [line.split(":")[0] for line in shown if ": node" in line] == ["bad node", "warning"]
    assert "8 × NVIDIA H100 80GB HBM3" in shown[1]
    assert shown[-1].startswith("preflight: not fit, 4 ranks on 4 nodes (srun)")

"""Which node or link is blamed for a slow network: one small case a rule, no process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.preflight.slow_links import common_nodes, judge_links, slow_pairs
from pipeline.cluster.preflight.verdict import Report
from pipeline.errors import Unfit


def all_pairs(nodes: int, slow: set[int], fast: float = 10.0) -> dict[tuple[str, str], float]:
    return {
        (f"n{low}", f"n{high}"): 0.5 if {low, high} & slow else fast
        for low in range(nodes)
        for high in range(low + 1, nodes)
    }


@given(st.integers(3, 9), st.data())
def test_a_node_whose_links_are_slow_is_found(nodes: int, data: st.DataObject) -> None:
    sick = data.draw(st.integers(0, nodes - 1))
    speeds = all_pairs(nodes, {sick})
    assert common_nodes(slow_pairs(speeds, floor=5.0), speeds) == [f"n{sick}"]


def test_two_slow_nodes_of_five() -> None:
    speeds = all_pairs(5, {1, 3})
    assert sorted(common_nodes(slow_pairs(speeds, 5.0), speeds)) == ["n1", "n3"]


def test_one_slow_link_blames_no_node() -> None:
    speeds = all_pairs(4, set()) | {("n0", "n1"): 0.5}
    report = Report(4, "srun", "runs/x", all_reduce=[(10**6, 0.5)])
    judge_links(report, speeds, 5.0, strict=False)
    assert report.bad_nodes() == []
    assert [problem.line() for problem in report.problems] == [
        "fault: the link between n0 and n1 reaches 0.5 GB/s, others 10"
    ]


@pytest.mark.parametrize(("strict", "status"), [(True, Unfit.status), (False, 0)])
def test_links_that_are_all_slow_are_a_fault_only_where_the_recipe_sets_the_floor(strict: bool, status: int) -> None:
    report = Report(3, "srun", "runs/x", all_reduce=[(10**6, 0.5)])
    judge_links(report, all_pairs(3, {0, 1, 2}), 5.0, strict)
    assert len(report.problems) == 1
    assert (report.status(), report.bad_nodes()) == (status, [])


def test_a_slow_node_is_told_with_its_speed_and_its_links_are_not_told_again() -> None:
    report = Report(4, "srun", "runs/x", all_reduce=[(10**6, 0.5)])
    judge_links(report, all_pairs(4, {2}), 5.0, strict=True)
    assert [problem.line() for problem in report.problems] == [
        "bad node: n2: its links reach 0.5 GB/s, the best pair 10"
    ]


def test_pairs_do_not_matter_where_the_all_reduce_reaches_the_floor_at_any_size() -> None:
    report = Report(4, "srun", "runs/x", all_reduce=[(10**6, 0.5), (10**7, 5.0)])
    judge_links(report, all_pairs(4, {2}), 5.0, strict=True)
    assert report.problems == []

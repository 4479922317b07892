"""Slurm's short forms of hosts and tasks, and what is no such form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.node_list import expand_hosts, expected_hosts, first_host, tasks_per_node
from pipeline.errors import EnvironmentFault


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,12],cpu1", "gpu007"),
        ("rack[1-2]n", "rack1n"),
        ("a[3,5-7].cluster.org", "a3.cluster.org"),
    ],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@st.composite
def node_lists(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A Slurm node list and the hosts it stands for."""
    words, hosts = [], []
    for _ in range(draw(st.integers(1, 3))):
        name, end = (
            draw(st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True)),
            draw(st.sampled_from(["", ".org", "n"])),
        )
        width = draw(st.integers(1, 4))
        ranges = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=3))
        shown = [f"{low:0{width}d}" + (f"-{low + more:0{width}d}" if more else "") for low, more in ranges]
        numbers = [f"{number:0{width}d}" for low, more in ranges for number in range(low, low + more + 1)]
        words.append(name + (f"[{','.join(shown)}]" if ranges else "") + end)
        hosts += [f"{name}{number}{end}" for number in numbers] if ranges else [name + end]
    return ",".join(words), hosts


@given(node_lists())
def test_node_lists_are_expanded_in_order(both: tuple[str, list[str]]) -> None:
    short, hosts = both
    assert list(expand_hosts(short)) == hosts
    assert first_host(short) == hosts[0]


def test_node_lists_with_two_brackets() -> None:
    assert list(expand_hosts("rack[1-2]n[08-09]")) == ["rack1n08", "rack1n09", "rack2n08", "rack2n09"]


@pytest.mark.parametrize("hosts", ["", "[", "node[1-", "node[2-1]", "a,,b", "node[1-999999999]", "a" * 100 + "]"])
def test_other_node_lists_are_refused(hosts: str) -> None:
    with pytest.raises(EnvironmentFault, match="is not of the form"):
        list(expand_hosts(hosts))


def test_tasks_per_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize("text", ["", "2,", "2(x3", "x", "1(x999999999)"])
def test_other_tasks_per_node_are_refused(text: str) -> None:
    with pytest.raises(EnvironmentFault, match=r"is not of the form 2\(x3\),1"):
        tasks_per_node(text)


def test_the_hosts_of_the_step_come_before_those_of_its_job() -> None:
    job = {"SLURM_JOB_NODELIST": "node[1-3]"}
    assert expected_hosts(job) == ["node1", "node2", "node3"]
    assert expected_hosts(job | {"SLURM_STEP_NODELIST": "node[2-3]"}) == ["node2", "node3"]
    assert expected_hosts(job | {"SLURM_STEP_NODELIST": ""}) == ["node1", "node2", "node3"]
    assert expected_hosts({}) == []

"""Notes in a store: who answers is heard, and who does not is named, whichever side waits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.cluster.launch import free_port
from pipeline.cluster.preflight.rendezvous import Meeting, Over, Silent, meet, meet_again
from pipeline.cluster.ranks import ALONE, Ranks
from pipeline.errors import EnvironmentFault, Unfit

PATIENCE = 120.0  # seconds, where an answer comes


@pytest.fixture
def ranks() -> Ranks:
    """Rank 0 of three."""
    return Ranks(0, 3, 0, 3, "local", "127.0.0.1", free_port())


@pytest.fixture
def meetings(ranks: Ranks) -> Iterator[list[Meeting]]:
    """Of ranks 0 and 1; rank 2 does not come."""
    first = meet(ranks, PATIENCE)
    yield [first, meet(replace(ranks, rank=1, local_rank=1), PATIENCE)]


def test_a_note_is_read_by_others_and_by_another_connection(ranks: Ranks, meetings: list[Meeting]) -> None:
    meetings[1].put("here", {"host": "knoten-ü", "expects": 2})
    for reader in (*meetings, meet_again(ranks, PATIENCE)):
        assert reader.read("here", 1, PATIENCE) == {"host": "knoten-ü", "expects": 2}


def test_a_note_is_waited_for(meetings: list[Meeting]) -> None:
    later = threading.Timer(0.2, meetings[1].put, ("place", [1, None, "x"]))
    later.start()
    assert meetings[0].read("place", 1, PATIENCE) == [1, None, "x"]
    later.join()


def test_whoever_left_no_note_is_named(meetings: list[Meeting]) -> None:
    with pytest.raises(Silent, match=r"rank 2 has not answered for 0 s \(here\)") as told:
        meetings[0].read("here", 2, 0)
    assert told.value.rank == 2
    for meeting in meetings:
        meeting.put("here", meeting.ranks.rank)
    assert meetings[0].collect("here", range(3), 0.1) == ({0: 0, 1: 1}, [2])


def test_who_waits_for_rank_0_hears_its_verdict(meetings: list[Meeting]) -> None:
    first, second = meetings
    first.put("status", 4)
    with pytest.raises(Over):
        second.read("go", 0, PATIENCE)
    assert second.read("status", 0, PATIENCE) == 4
    with pytest.raises(Silent):
        first.read("go", 1, 0)  # rank 0 itself waits on


def test_starts_of_torchrun_do_not_read_each_other_s_notes(
    ranks: Ranks, meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    meetings[0].put("here", "before")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(Silent):
        meet_again(ranks, PATIENCE).read("here", 0, 0)


def test_the_agent_s_store_of_torchrun_is_used(
    ranks: Ranks, meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is taken by the agent: rank 0 connects to it, as the others do."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    meetings[1].put("here", 1)
    assert meet(ranks, PATIENCE).read("here", 1, PATIENCE) == 1


def test_a_taken_port_is_told(ranks: Ranks) -> None:
    assert ranks.port is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ranks.port))
        taken.listen()
        with pytest.raises(EnvironmentFault, match=f"rank 0 cannot listen on port {ranks.port}.*set MASTER_PORT"):
            meet(ranks, PATIENCE)


def test_rank_0_that_is_not_there_is_named(ranks: Ranks) -> None:
    with pytest.raises(Unfit, match=f"rank 2: rank 0 did not answer at 127.0.0.1:{ranks.port} within 0 s"):
        meet(replace(ranks, rank=2, local_rank=2), 0)


def test_a_process_that_is_alone_meets_itself() -> None:
    meet(ALONE, PATIENCE).put("alone", True)
    assert meet_again(ALONE, PATIENCE).read("alone", 0, 0) is True

"""One folder or two, as nodes find out: what one writes the other reads, what one locks the other cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cluster.preflight.shared_folder import clear, locked, note, seen


def test_notes_with_the_right_nonce_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"  # made by whoever comes first
    note(folder, "node1", "one")
    note(folder, "node2", "of an earlier start")
    (folder / "node3.txt").write_bytes(b"\xff")
    assert seen(folder, {"node1": "one", "node2": "two", "node3": "three", "node4": "four"}, patience=0) == ["node1"]
    note(folder, "node2", "two")
    assert seen(folder, {"node1": "one", "node2": "two"}) == ["node1", "node2"]


def test_a_folder_that_is_not_there_shows_nobody(tmp_path: Path) -> None:
    assert seen(tmp_path / "elsewhere", {"node1": "one"}, patience=0) == []


def test_a_lock_is_held_once_and_free_again(tmp_path: Path) -> None:
    with locked(tmp_path) as first:
        assert first is True
        with locked(tmp_path) as second:
            assert second is False
    with locked(tmp_path) as third:
        assert third is True


def test_where_no_lock_can_be_taken_the_system_says_why(tmp_path: Path) -> None:
    with locked(tmp_path / "elsewhere") as answer:
        assert answer == "No such file or directory"


def test_the_last_node_takes_the_folder_away(tmp_path: Path) -> None:
    folder = tmp_path / "preflight-1.tmp"
    note(folder, "node1", "one")
    note(folder, "node2", "two")
    with locked(folder):
        pass
    clear(folder, "node1")
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "node2.txt"]
    clear(folder, "node2")
    assert not folder.exists()
    clear(folder, "node2")  # gone already


def test_a_folder_with_something_else_in_it_stays(tmp_path: Path) -> None:
    note(tmp_path, "node1", "one")
    (tmp_path / "mine").touch()
    clear(tmp_path, "node1")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_note_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        note(tmp_path / "file", "node1", "one")

"""Journals of JSON lines, which two threads use at once."""

from __future__ import annotations

import threading
from pathlib import Path

from pipeline.journal import Journal


def test_a_line_that_is_added_during_a_rewind_is_not_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")

    def add() -> None:
        for number in range(400):
            journal.append({"step": 0, "number": number})

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive():
        journal.append({"step": 9, "metrics": {"loss": 1.0}})
        journal.rewind(5)
    thread.join()
    assert [line["number"] for line, _ in journal.read()] == list(range(400))

"""The store's file: whole when it appears, whoever makes it and whoever is killed meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from pipeline.mlflow_store import MlflowStore, _database
from pipeline.recipe import Recipe


@pytest.fixture
def fresh(tmp_path: Path) -> Recipe:
    """A recipe whose store is not there yet."""
    corpus = {"sources": [{"name": "python", "type": "python_docs"}]}
    return Recipe.model_validate({"name": "tiny", "workdir": tmp_path / "runs" / "tiny", "corpus": corpus})


def open_store(recipe: Recipe, together: threading.Barrier) -> None:
    together.wait()
    MlflowStore(recipe)


def test_commands_that_begin_together_make_one_store(fresh: Recipe) -> None:
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(3)
    processes = [context.Process(target=open_store, args=(fresh, together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in fresh.workdir.parent.iterdir()] == ["mlflow.db"]


def killed_in_the_middle(recipe: Recipe) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "before_cursor_execute")
    def kill(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "ALTER TABLE" in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    MlflowStore(recipe)


def test_a_command_killed_while_it_makes_the_store_does_no_harm(fresh: Recipe) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=killed_in_the_middle, args=(fresh,))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    database = fresh.workdir.parent / "mlflow.db"
    assert not database.exists()
    for left in database.parent.iterdir():
        os.utime(left, (0, 0))
    assert MlflowStore(fresh).client.get_experiment_by_name("tiny")
    assert [*database.parent.iterdir()] == [database]


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///{}/a.db", "a.db"),
        ("sqlite:///{}/my%20runs/a.db?timeout=3", "my runs/a.db"),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:{}/a.db?uri=true", None),
        ("http://localhost:5000", None),
    ],
)
def test_the_file_of_a_store(tmp_path: Path, uri: str, file: str | None) -> None:
    assert _database(uri.format(tmp_path)) == (tmp_path / file if file else None)


def test_a_store_where_there_are_no_links(fresh: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert MlflowStore(fresh).client.get_experiment_by_name("tiny")
    assert [path.name for path in fresh.workdir.parent.iterdir()] == ["mlflow.db"]

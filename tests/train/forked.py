"""Stages and commands in processes forked from one that has imported everything.

A fresh interpreter that imports torch, DeepSpeed and transformers costs ten times as much as a tiny training. One
server forks for all files of a test run's process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from command import clean_environment

from pipeline.cluster.launch import free_port

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "pytest",  # a child imports the main module again
        "deepspeed",
        "mlflow",
        "peft",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
        "transformers.models.t5.modeling_t5",
        "pipeline.cli",
        "pipeline.run",
        "pipeline.train.finetune",
        "pipeline.train.grid",
    ]
)
PATIENCE = 500.0  # seconds; a process that takes longer is killed, and its test fails


@dataclass(frozen=True)
class Ended:
    """How a run ended. status: of the first rank that failed, negative for a signal; said: rank 0's words."""

    status: int
    said: str


def run(folder: Path, action: Callable[..., object], *arguments: object, ranks: int = 1, **variables: str) -> Ended:
    """Call `action(*arguments)` on so many ranks, as under torchrun: a process each, and environment variables.

    folder: for what they say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = contextlib.ExitStack()
    port = str(free_port(held))
    started: list[BaseProcess] = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        environment = clean_environment(
            **{name: str(value) for name, value in place.items()},
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            OMP_NUM_THREADS="1",
            **variables,
        )
        process: BaseProcess = server.Process(
            target=_child, args=(folder / f"rank-{rank}.txt", environment, action, arguments)
        )
        process.start()
        started.append(process)
    for process in started:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
    held.close()
    ends = [process.exitcode or 0 for process in started]
    said = (folder / "rank-0.txt").read_text(encoding="utf-8", errors="replace")
    return Ended(next((end for end in ends if end), 0), said)


def _child(said: Path, environment: Mapping[str, str], action: Callable[..., object], arguments: Sequence[Any]) -> None:
    import torch

    words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(words, stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    action(*arguments)


# --- actions -------------------------------------------------------------------------------------------------------


def stages(recipe_file: Path, names: Sequence[str], dies: tuple[str, int] | None = None) -> None:
    """Bring stages up to date. dies: a stage, and the step at whose beginning the process sends itself SIGKILL."""
    from pipeline import delivery
    from pipeline.config import load_recipe
    from pipeline.progress import start_logging
    from pipeline.run import run_stage
    from pipeline.train.steps import Steps

    start_logging()
    delivery.CLOSE_SECONDS = 300.0  # what MLflow shows is not what a busy machine shall decide
    do: Callable[[Steps, int], float] = Steps.do

    def or_die(steps: Steps, step: int) -> float:
        if (steps.task.name, step) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(steps, step)

    Steps.do = or_die  # type: ignore[method-assign,assignment]
    recipe = load_recipe(str(recipe_file), [])
    for name in names:
        run_stage(recipe, name)


def command(*words: str | Path) -> None:
    """`pipeline WORDS…`."""
    from pipeline.cli import main

    main([str(word) for word in words])

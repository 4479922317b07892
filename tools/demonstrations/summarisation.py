"""The demo's summariser with more to learn from: a function of a held-out file in, the first sentence of its docstring
out. Promise: ROUGE on functions that it never saw is above what copying the function gives, and what its first line
gives, which is the lead sentence of a program."""

from __future__ import annotations

from pathlib import Path

from promises import Promise, evaluation

from pipeline.evaluate.records import read_records
from pipeline.evaluate.text_metrics import text_metrics
from pipeline.train.docstring_examples import INSTRUCTION

TASK = "summarize"
METRICS = ("rouge1", "rouge2", "rougeL")


def prepare(data: Path) -> None:
    """Nothing: the text is that of the installed packages."""


def promises(run: Path) -> list[Promise]:
    """What must hold of the finished run."""
    result = evaluation(run, TASK)
    rows = read_records(run / "evaluation" / f"{TASK}.jsonl")
    references = [row["reference"] for row in rows]
    copied = [function_in(row["prompt"]) for row in rows]
    copy = text_metrics(references, copied).values
    lead = text_metrics(references, [lead_sentence(function) for function in copied]).values
    return [
        Promise(
            "summarisation of functions",
            name,
            result["finetuned"][name],
            {"copy": copy[name], "first line": lead[name], "before": result["base"][name]},
        )
        for name in METRICS
    ]


def function_in(prompt: str) -> str:
    """The function in an example's prompt, without the words of the task."""
    return prompt.removeprefix(INSTRUCTION).strip()


def lead_sentence(function: str) -> str:
    """A function's first line: its name and parameters."""
    return function.partition("\n")[0]

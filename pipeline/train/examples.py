"""Examples to fine-tune on, and those held out: read or made, checked, chosen by hash, kept as two JSON-lines files.

An example is a text and its answer (example.py). What
is chosen depends on the examples alone, never on their order in the files or on a seed, so that two runs with other
seeds learn from and are measured on the same ones. Duplicates are dropped, and so is every training example whose text
(or completion) is held out. All examples of a task fit in memory.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import atomic_write, write_json
from pipeline.recipe import FinetuneTask
from pipeline.train.example import Example, Form, Kind, Problem
from pipeline.train.example_files import examples as examples_in
from pipeline.train.example_files import read_file

SUMMARY = "examples.json"
PARTS = ("train", "validation")


@dataclass(frozen=True)
class Examples:
    """The examples of a task. skipped: reason → how many were left out; problem: of a classifier."""

    kind: Kind
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    problem: Problem = "single_label"

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted; () where there are none."""
        return tuple(sorted(self._classes(self.train)))

    def _classes(self, examples: Iterable[Example]) -> Counter[str]:
        """Label → how many bear it."""
        if self.kind != "classify" or self.problem == "regression":
            return Counter()
        if self.problem == "multi_label":
            return Counter(label for example in examples for label in example.labels)
        return Counter(example.answer for example in examples)

    def counts(self) -> dict[str, Any]:
        """For the manifest: sizes, what was left out and why, and the classes with their training examples."""
        found: dict[str, Any] = {"train": len(self.train), "validation": len(self.validation), "skipped": self.skipped}
        if self.kind == "classify":
            found["classes"] = dict(sorted(self._classes(self.train).items()))
            found["validation_classes"] = dict(sorted(self._classes(self.validation).items()))
        return found


class Smallest:
    """Keeps the `limit` examples with the smallest keys out of any number, one for each key; limit None: all."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._kept: dict[int, Example] = {}
        self._largest_first: list[int] = []  # negated keys, a heap

    def wants(self, key: int) -> bool:
        """Whether an example with this key would be kept now."""
        if key in self._kept:
            return False
        return self.limit is None or len(self._kept) < self.limit or key < -self._largest_first[0]

    def add(self, key: int, example: Example) -> None:
        """Keep it if it is wanted; the largest key gives way."""
        if self.wants(key):
            self._kept[key] = example
            heapq.heappush(self._largest_first, -key)
            self.shrink(self.limit)

    def shrink(self, limit: int | None) -> None:
        """Keep fewer from now on."""
        self.limit = limit
        while limit is not None and len(self._kept) > limit:
            del self._kept[-heapq.heappop(self._largest_first)]

    def __len__(self) -> int:
        return len(self._kept)

    def examples(self) -> list[Example]:
        """What is kept, by key."""
        return [self._kept[key] for key in sorted(self._kept)]


def prepare(task: FinetuneTask, name: str, text: Path, folder: Path, reserved: Sequence[str]) -> Examples:
    """Make the examples of a task and keep them in `folder`, or read them where that is done already.

    Args: name, of the task, for messages; text, the text tars' folder; reserved, the tokenizer's special tokens: an
    example that spells one is left out, since a chat template could not tell it from a real one.
    Raises: DataError naming the file and line, or what the data lack.
    """
    form = Form(Form.of(task).kind, task.problem)  # what is kept bears the fields' own names
    if (folder / SUMMARY).is_file():
        return read(folder, form)
    if not task.data.startswith("docstring"):
        found = from_files(task, name)
    else:
        from pipeline.train import docstring_examples

        found = docstring_examples.prepare(task, name, text)
    made = _checked(found, task, name, reserved)
    for part, examples in zip(PARTS, (made.train, made.validation), strict=True):
        write_lines(folder / f"{part}.jsonl", examples, form)
    write_json(folder / SUMMARY, made.counts())
    return read(folder, form)  # what a restart and the other ranks read: reading trims white space


def read(folder: Path, form: Form) -> Examples:
    """The examples that `prepare` kept in `folder`."""
    train, validation = (tuple(read_file(folder / f"{part}.jsonl", form)) for part in PARTS)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Examples(form.kind, train, validation, summary["skipped"], form.problem)


def write_lines(path: Path, examples: Iterable[Example], form: Form) -> None:
    """One JSON object a line: `id` and the fields of the kind."""
    with atomic_write(path, "w") as handle:
        for example in examples:
            handle.write(json.dumps(form.line(example), ensure_ascii=False) + "\n")


# --- your files ----------------------------------------------------------------------------------------------------


def from_files(task: FinetuneTask, name: str) -> Examples:
    """Examples from `train_files`; those held out from `validation_files`, or a share of the former by hash.

    Raises: DataError naming the file and the line.
    """
    form, where = Form.of(task), f"finetune.{name}"
    if not task.train_files:
        raise DataError(f"{where}: data is {task.data}, but train_files is not set; give a file or a glob pattern")
    skipped: Counter[str] = Counter()
    found = examples_in(task.data, task.train_files, f"{where}.train_files", form)
    train = _unique(found, form.kind, skipped)
    if task.validation_files:
        found = examples_in(task.data, task.validation_files, f"{where}.validation_files", form)
        held_out = _unique(found, form.kind, skipped)
        if len(held_out) > task.max_validation_examples:
            skipped["max_validation_examples"] += len(held_out) - task.max_validation_examples
    else:
        share = max(1, min(round(len(train) * task.validation), task.max_validation_examples))
        held_out = []
        # A label's last training example is not held out: nothing could be learnt of it.
        known = Counter(label for example in train for label in _labels(example, form))
        for example in train:
            labels = _labels(example, form)
            if len(held_out) < share and all(known[label] > 1 for label in labels):
                held_out.append(example)
                known.subtract(labels)
    held_out = held_out[: task.max_validation_examples]
    return Examples(form.kind, tuple(train), tuple(held_out), dict(skipped), form.problem)


def _labels(example: Example, form: Form) -> list[str]:
    if form.kind != "classify" or form.problem == "regression":
        return []
    return example.labels if form.problem == "multi_label" else [example.answer]


def _unique(examples: Iterable[Example], kind: Kind, skipped: Counter[str]) -> list[Example]:
    """By key, without repetitions; for classify also without texts that bear two labels. Counts what is left out."""
    found: dict[tuple[str, str], Example] = {}
    for example in examples:
        if (example.question, example.answer) in found:
            skipped["duplicate"] += 1
        found.setdefault((example.question, example.answer), example)
    if kind == "classify":
        labels = Counter(text for text, _ in found)
        skipped["contradictory"] += sum(count for count in labels.values() if count > 1)
        found = {key: example for key, example in found.items() if labels[key[0]] == 1}
    return sorted(found.values(), key=lambda example: (example.key, example.answer))


# --- checks that all data pass -------------------------------------------------------------------------------------


def _checked(found: Examples, task: FinetuneTask, name: str, reserved: Sequence[str]) -> Examples:
    """Without reserved words and leakage, at most max_examples; refuses what nothing can be learnt from."""
    skipped: Counter[str] = Counter(found.skipped)

    def clean(examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            parts = (example.text, example.pair, *(content for _, content in example.chat))
            if any(word in part for part in parts for word in reserved):
                skipped["special_tokens"] += 1
            else:
                yield example

    validation = tuple(clean(found.validation))
    own = {id(example) for example in validation}  # a share of the training examples, in `from_jsonl`
    texts = {example.question for example in validation}
    answers = {example.answer for example in validation} if task.data == "docstring_summaries" else set()
    train = []
    for example in clean(example for example in found.train if id(example) not in own):
        if example.question in texts or example.answer in answers:
            skipped["held_out"] += 1
        else:
            train.append(example)
    if task.max_examples is not None and len(train) > task.max_examples:
        if not task.data.startswith("docstring"):  # of what is made from text, as many are looked for as are asked for
            skipped["max_examples"] += len(train) - task.max_examples
        train = train[: task.max_examples]
    left_out = {reason: n for reason, n in sorted(skipped.items()) if n}
    made = Examples(found.kind, tuple(train), validation, left_out, found.problem)
    _refuse(made, name)
    return made


def _refuse(made: Examples, name: str) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in made.skipped.items()) or "none"
    for part, examples in (("train on", made.train), ("hold out", made.validation)):
        if not examples:
            kept = "; a label's only example is not held out" if made.kind == "classify" and made.train else ""
            raise DataError(
                f"finetune.{name}: no example is left to {part} (left out: {left_out}{kept}); give more data"
            )
    if made.kind != "classify":
        return
    if made.problem == "regression":
        if len({example.answer for example in made.train}) < 2:
            raise DataError(f"finetune.{name}: all training examples have the number {made.train[0].answer}")
        return
    if len(made.labels) < (1 if made.problem == "multi_label" else 2):
        raise DataError(
            f"finetune.{name}: all {len(made.train)} training examples have the label "
            f"'{next(iter(made.labels), 'none')}'; a classifier needs two at least"
        )
    for example in made.validation:
        for label in example.labels if made.problem == "multi_label" else [example.answer]:
            if label not in made.labels:
                raise DataError(
                    f"{example.id}: label '{label}' is held out, but no training example has it; "
                    f"those have {', '.join(made.labels[:20])}"
                )

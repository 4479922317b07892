"""Examples to fine-tune on, and those held out: read or made, checked, chosen by hash, kept as two JSON-lines files.

An example is a text and its answer: for `sft` a prompt and its completion, for `classify` a text and its label. What
is chosen depends on the examples alone, never on their order in the files or on a seed, so that two runs with other
seeds learn from and are measured on the same ones. Duplicates are dropped, and so is every training example whose text
(or completion) is held out. All examples of a task fit in memory.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.sources import find_files
from pipeline.errors import DataError
from pipeline.files import atomic_write, write_json
from pipeline.recipe import FinetuneTask

Kind = Literal["sft", "classify"]
FIELDS: dict[str, tuple[str, str]] = {"sft": ("prompt", "completion"), "classify": ("text", "label")}
SUMMARY = "examples.json"
PARTS = ("train", "validation")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE = 16 * 1024 * 1024  # bytes; a longer line is no example


@dataclass(frozen=True)
class Example:
    """A text and its answer. id: where it comes from (file and line, or document), for messages."""

    id: str
    text: str
    answer: str

    @property
    def key(self) -> int:
        """A hash of the text: by it examples are chosen, split and ordered."""
        return hash_of(self.text)


@dataclass(frozen=True)
class Examples:
    """The examples of a task. skipped: reason → how many were left out; labels: sorted, empty for sft."""

    kind: Kind
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted; () for sft."""
        return tuple(sorted({example.answer for example in self.train})) if self.kind == "classify" else ()

    def counts(self) -> dict[str, Any]:
        """For the manifest: sizes, what was left out and why, and the classes with their training examples."""
        found: dict[str, Any] = {"train": len(self.train), "validation": len(self.validation), "skipped": self.skipped}
        if self.kind == "classify":
            found["classes"] = dict(sorted(Counter(example.answer for example in self.train).items()))
            found["validation_classes"] = dict(sorted(Counter(example.answer for example in self.validation).items()))
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


def hash_of(text: str) -> int:
    """128 bits of a text's SHA-256, as a number that orders texts at random but always alike."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], "big")


def prepare(task: FinetuneTask, name: str, text: Path, folder: Path, reserved: Sequence[str]) -> Examples:
    """Make the examples of a task and keep them in `folder`, or read them where that is done already.

    Args: name, of the task, for messages; text, the text tars' folder; reserved, the tokenizer's special tokens: an
    example that spells one is left out, since a chat template could not tell it from a real one.
    Raises: DataError naming the file and line, or what the data lack.
    """
    if (folder / SUMMARY).is_file():
        return read(folder, task.task)
    if task.data == "jsonl":
        found = from_jsonl(task, name)
    else:
        from pipeline.train import docstring_examples

        found = docstring_examples.prepare(task, name, text)
    made = _checked(found, task, name, reserved)
    for part, examples in zip(PARTS, (made.train, made.validation), strict=True):
        write_lines(folder / f"{part}.jsonl", examples, task.task)
    write_json(folder / SUMMARY, made.counts())
    return read(folder, task.task)  # what a restart and the other ranks read: reading trims white space


def read(folder: Path, kind: Kind) -> Examples:
    """The examples that `prepare` kept in `folder`."""
    train, validation = (tuple(read_lines(folder / f"{part}.jsonl", kind)) for part in PARTS)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Examples(kind, train, validation, summary["skipped"])


def write_lines(path: Path, examples: Iterable[Example], kind: Kind) -> None:
    """One JSON object a line: `id` and the two fields of the kind."""
    text, answer = FIELDS[kind]
    with atomic_write(path, "w") as handle:
        for example in examples:
            line = {"id": example.id, text: example.text, answer: example.answer}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")


# --- your files ----------------------------------------------------------------------------------------------------


def from_jsonl(task: FinetuneTask, name: str) -> Examples:
    """Examples from `train_files`; those held out from `validation_files`, or a share of the former by hash.

    Raises: DataError naming the file and the line.
    """
    if not task.train_files:
        raise DataError(f"finetune.{name}: data is jsonl, but train_files is not set; give a file or a glob pattern")
    skipped: Counter[str] = Counter()
    train = _unique(_read_files(task.train_files, f"finetune.{name}.train_files", task.task), task.task, skipped)
    if task.validation_files:
        where = f"finetune.{name}.validation_files"
        held_out = _unique(_read_files(task.validation_files, where, task.task), task.task, skipped)
        if len(held_out) > task.max_validation_examples:
            skipped["max_validation_examples"] += len(held_out) - task.max_validation_examples
    else:
        share = max(1, min(round(len(train) * task.validation), task.max_validation_examples))
        known = Counter(example.answer for example in train)
        held_out = []
        for example in train:  # a label's last training example is not held out: nothing could be learnt of it
            if len(held_out) < share and (task.task == "sft" or known[example.answer] > 1):
                held_out.append(example)
                known[example.answer] -= 1
    held_out = held_out[: task.max_validation_examples]
    return Examples(task.task, tuple(train), tuple(held_out), dict(skipped))


def _read_files(pattern: str, where: str, kind: Kind) -> Iterator[Example]:
    try:
        found = find_files(pattern, SUFFIXES)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    for item in found:
        yield from read_lines(Path(item.path), kind)


def read_lines(path: Path, kind: Kind) -> Iterator[Example]:
    """The examples of one JSON-lines file (plain, .gz or .zst); ids are the file's own, or its name and the line.

    Raises: DataError naming the file and line, and what is wrong there.
    """
    form = 'an object with "{}" and "{}"'.format(*FIELDS[kind])
    with open_stream(path) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE), b""), 1):
            place = f"{path}:{number}"
            if len(line) == MAX_LINE:
                raise DataError(f"{place}: longer than {MAX_LINE // 2**20} MiB; each line must be {form}")
            if line.strip():
                yield _example(line, place, kind, form)


def _example(line: bytes, place: str, kind: Kind, form: str) -> Example:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); each line must be {form}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: {type(value).__name__} in place of {form}")
    parts = []
    for name in FIELDS[kind]:
        part = value.get(name)
        if name == "label" and isinstance(part, (bool, int)):
            part = str(part)
        if name not in value:
            raise DataError(f"{place}: key '{name}' is missing; the line has {', '.join(map(repr, value)) or 'none'}")
        if not isinstance(part, str):
            raise DataError(f"{place}: '{name}' must be text, not {type(part).__name__}")
        if not part.strip():
            raise DataError(f"{place}: '{name}' is empty; fill it or take the line out")
        try:
            part.encode()
        except UnicodeEncodeError:
            raise DataError(f"{place}: '{name}' holds half a character (a lone surrogate)") from None
        parts.append(part.strip())
    return Example(str(value.get("id", place)), *parts)


def _unique(examples: Iterable[Example], kind: Kind, skipped: Counter[str]) -> list[Example]:
    """By key, without repetitions; for classify also without texts that bear two labels. Counts what is left out."""
    found: dict[tuple[str, str], Example] = {}
    for example in examples:
        if (example.text, example.answer) in found:
            skipped["duplicate"] += 1
        found.setdefault((example.text, example.answer), example)
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
            if any(word in example.text or word in example.answer for word in reserved):
                skipped["special_tokens"] += 1
            else:
                yield example

    validation = tuple(clean(found.validation))
    own = {id(example) for example in validation}  # a share of the training examples, in `from_jsonl`
    texts = {example.text for example in validation}
    answers = {example.answer for example in validation} if task.data == "docstring_summaries" else set()
    train = []
    for example in clean(example for example in found.train if id(example) not in own):
        if example.text in texts or example.answer in answers:
            skipped["held_out"] += 1
        else:
            train.append(example)
    if task.max_examples is not None and len(train) > task.max_examples:
        if task.data == "jsonl":  # of what is made from text, as many are looked for as are asked for
            skipped["max_examples"] += len(train) - task.max_examples
        train = train[: task.max_examples]
    made = Examples(found.kind, tuple(train), validation, {reason: n for reason, n in sorted(skipped.items()) if n})
    _refuse(made, name)
    return made


def _refuse(made: Examples, name: str) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in made.skipped.items()) or "none"
    for part, examples in (("train on", made.train), ("hold out", made.validation)):
        if not examples:
            raise DataError(f"finetune.{name}: no example is left to {part} (left out: {left_out}); give more data")
    if made.kind != "classify":
        return
    if len(made.labels) < 2:
        raise DataError(
            f"finetune.{name}: all {len(made.train)} training examples have the label '{made.labels[0]}'; "
            "a classifier needs two at least"
        )
    for example in made.validation:
        if example.answer not in made.labels:
            raise DataError(
                f"{example.id}: label '{example.answer}' is held out, but no training example has it; "
                f"those have {', '.join(made.labels[:20])}"
            )

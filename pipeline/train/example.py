"""One example to learn from: what a row of data must hold for each task, and how it is kept as a JSON line.

| task | columns |
|---|---|
| sft | `prompt` and `completion`, or `messages` (a list of `role` and `content`; the assistant's turns are learnt) |
| classify | `text`, `label`, `text_pair` where the text is the first of two, `group` to evaluate by groups |
| seq2seq | `source` and `target` |

A `label` is a word or a whole number; for several labels at once a list of them, or one text with `|` between them;
for regression a number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask

Kind = Literal["sft", "classify", "seq2seq"]
Problem = Literal["single_label", "multi_label", "regression"]
FIELDS: dict[str, tuple[str, str]] = {
    "sft": ("prompt", "completion"),
    "classify": ("text", "label"),
    "seq2seq": ("source", "target"),
}
PAIR, MESSAGES, GROUP = "text_pair", "messages", "group"
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """A text and its answer. id: where it comes from (file and line, or document), for messages; answer: several labels
    as a sorted JSON list, a number as Python writes it; pair: a second text; messages: role and content of a chat of
    more than one question and answer, whose last content is `answer`; group: whose example it is, for evaluation."""

    id: str
    text: str
    answer: str
    pair: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    group: str = ""

    @property
    def question(self) -> str:
        """All that the answer is to."""
        return f"{self.text}\0{self.pair}" if self.pair else self.text

    @property
    def key(self) -> int:
        """A hash of the question: by it examples are chosen, split and ordered."""
        return hash_of(self.question)

    @property
    def chat(self) -> tuple[tuple[str, str], ...]:
        """Role and content of each turn."""
        return self.messages or (("user", self.text), ("assistant", self.answer))

    @property
    def labels(self) -> list[str]:
        """Several labels at once."""
        found: list[str] = json.loads(self.answer)
        return found


def hash_of(text: str) -> int:
    """128 bits of a text's SHA-256, as a number that orders texts at random but always alike."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], "big")


def without_oldest(roles: Sequence[str]) -> list[int] | None:
    """The turns (by number) that a chat keeps when the first after the system's go, up to the next of the user; None
    where only one of the user's is left."""
    system = 1 if roles[0] == "system" else 0
    later = [turn for turn in range(system + 1, len(roles)) if roles[turn] == "user"]
    return [*range(system), *range(later[0], len(roles))] if later else None


@dataclass(frozen=True)
class Form:
    """What a row must look like. columns: field → the column that holds it, where they differ."""

    kind: Kind
    problem: Problem = "single_label"
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, task: FinetuneTask) -> Form:
        """Of a task whose data are the user's own."""
        assert task.task != "continue", "its documents are no examples"
        return cls(task.task, task.problem, task.columns)

    def column(self, name: str) -> str:
        """The column that holds a field."""
        return self.columns.get(name, name)

    def __str__(self) -> str:
        return 'an object with "{}" and "{}"'.format(*map(self.column, FIELDS[self.kind]))

    def parse(self, value: Any, place: str) -> Example:
        """The example in a row. place: file and line, its id where the row has none.

        Raises: DataError naming the place, and what is wrong there.
        """
        if not isinstance(value, dict):
            raise DataError(f"{place}: {type(value).__name__} in place of {self}")
        identity = value.get(self.column("id"))
        identity = place if identity is None else str(identity)
        text, answer = FIELDS[self.kind]
        if self.kind == "sft" and self.column(MESSAGES) in value and value[self.column(MESSAGES)] is not None:
            return _chat(value[self.column(MESSAGES)], identity, place, self.column(MESSAGES))
        question = self._text(value, text, place)
        if self.kind != "classify":
            return Example(identity, question, self._text(value, answer, place))
        paired = PAIR in self.columns or value.get(PAIR) is not None
        pair = self._text(value, PAIR, place) if paired else ""
        group = value.get(self.column(GROUP))
        group = "" if group is None else _text(_word(group), self.column(GROUP), place)
        return Example(identity, question, self._label(value, place), pair, group=group)

    def _take(self, value: dict[str, Any], name: str, place: str) -> Any:
        column = self.column(name)
        if column not in value:
            has = ", ".join(map(repr, value)) or "none"
            raise DataError(f"{place}: key '{column}' is missing; the line has {has}")
        return value[column]

    def _text(self, value: dict[str, Any], name: str, place: str) -> str:
        return _text(self._take(value, name, place), self.column(name), place)

    def _label(self, value: dict[str, Any], place: str) -> str:
        label, column = self._take(value, "label", place), self.column("label")
        if self.problem == "regression":
            try:
                number = math.nan if isinstance(label, bool) else float(label)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise DataError(f"{place}: '{column}' must be a finite number for problem: regression, not {label!r}")
            return repr(number)
        if self.problem == "multi_label":
            if isinstance(label, str):
                label = [part for part in label.split("|") if part.strip()]
            if not isinstance(label, list):
                raise DataError(f"{place}: '{column}' must be a list of labels, or a text with | between them")
            return json.dumps(sorted({_text(_word(one), column, place) for one in label}), ensure_ascii=False)
        return _text(_word(label), column, place)

    def line(self, example: Example) -> dict[str, Any]:
        """An example as it is kept: under the fields' own names."""
        text, answer = FIELDS[self.kind]
        found: dict[str, Any] = {"id": example.id, text: example.text, answer: example.answer}
        if self.kind == "classify" and self.problem != "single_label":
            found[answer] = json.loads(example.answer)
        if example.pair:
            found[PAIR] = example.pair
        if example.group:
            found[GROUP] = example.group
        if example.messages:
            found[MESSAGES] = [{"role": role, "content": content} for role, content in example.messages]
        return found


def _word(label: Any) -> Any:
    return str(label) if isinstance(label, (bool, int)) else label


def _text(part: Any, name: str, place: str) -> str:
    if not isinstance(part, str):
        raise DataError(f"{place}: '{name}' must be text, not {type(part).__name__}")
    if not part.strip():
        raise DataError(f"{place}: '{name}' is empty; fill it or take the line out")
    try:
        part.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: '{name}' holds half a character (a lone surrogate)") from None
    return part.strip()


def _chat(value: Any, identity: str, place: str, column: str) -> Example:
    """A chat: its text is all that stands before the last answer."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f'{place}: \'{column}\' must be a list of objects with "role" and "content"')
    turns = []
    for number, one in enumerate(value, 1):
        role = one.get("role")
        if role not in ROLES:
            raise DataError(f"{place}: message {number}: role {role!r} is none of {', '.join(ROLES)}")
        turns.append((role, _text(one.get("content"), f"{column}[{number}].content", place)))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise DataError(f"{place}: '{column}' must end with the assistant's answer to something; take the line out")
    *before, (_, answer) = turns
    if [role for role, _ in before] == ["user"]:
        return Example(identity, before[0][1], answer)
    text = "\n\n".join(f"{role}: {content}" for role, content in before)
    return Example(identity, text, answer, messages=tuple(turns))

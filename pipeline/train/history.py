"""The losses of all steps, kept beside the checkpoints so that a resumed run knows those from before."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.files import write_text

FILE = "losses.jsonl"


class History:
    """`losses.jsonl`: {"step", "loss"} and {"step", "validation"}. Rank 0 writes it; the others keep it in memory."""

    def __init__(self, folder: Path, writes: bool) -> None:
        self._path = folder / FILE
        self._writes = writes
        self._losses: dict[int, float] = {}
        self._validations: dict[int, dict[str, float]] = {}
        self._file: IO[str] | None = None

    def cut(self, step: int) -> None:
        """Forget what was learnt after `step` steps: it will be done again. Opens the file."""
        self.close()
        self._losses.clear()
        self._validations.clear()
        kept = []
        for record in self._read():
            if "loss" in record and record["step"] < step:
                self._losses[record["step"]] = math.nan if record["loss"] is None else record["loss"]
            elif "validation" in record and record["step"] <= step:
                self._validations[record["step"]] = record["validation"]
            else:
                continue
            kept.append(json.dumps(record) + "\n")
        if self._writes:
            write_text(self._path, "".join(kept), own=True)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 — close() closes it

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        with open(self._path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # a killed run may leave half a line
                    yield json.loads(line)

    def add_loss(self, step: int, loss: float) -> None:
        """The mean loss of step `step` (counted from 0); one that is not finite is null in the file, nan here."""
        self._losses[step] = loss if math.isfinite(loss) else math.nan
        self._write({"step": step, "loss": loss if math.isfinite(loss) else None})

    def add_validation(self, step: int, found: dict[str, float]) -> None:
        """Numbers on held-out data after `step` steps."""
        self._validations[step] = found
        self._write({"step": step, "validation": found})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """Put what was added on disk: before a checkpoint counts on it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def recent(self, count: int) -> float:
        """Mean of the finite ones of the last `count` losses; nan when there is none."""
        last = [loss for loss in itertools.islice(reversed(self._losses.values()), count) if math.isfinite(loss)]
        return math.fsum(last) / len(last) if last else math.nan

    def losses(self) -> list[float]:
        """Losses of all steps, in order."""
        return [self._losses[step] for step in sorted(self._losses)]

    def validations(self) -> dict[int, dict[str, float]]:
        """Held-out numbers by steps done."""
        return dict(sorted(self._validations.items()))


def in_json(value: float) -> float | str:
    """A number as JSON can hold it: `nan` and `inf` as words."""
    return value if math.isfinite(value) else str(value)

"""Measuring contenders: each in a fresh interpreter, on as many cores as it is given, one after the other.

A contender is a function `prepare(settings) -> work`: what it does before it returns (imports, models, compilation) is
its start, timed apart; `work()` is what is measured, and returns a dict of JSON types: maybe `bytes` and `documents`
done, and whatever the benchmark wants to compare.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from machine import describe, version

_CONTENDER = Path(__file__).with_name("contender.py")
_LOOK = 0.02  # seconds between two looks at the memory of a contender's processes
_LOOK_SHARED = 0.25  # likewise, where the kernel walks through all their pages for it


@dataclass(frozen=True)
class Contender:
    """name: in the table. function: `module:function` of this folder. package: distribution that it needs.

    settings: JSON types, handed to the function. threads: cores it may use, and threads its libraries start. shared:
    memory that several of its processes share counts once (PSS, which takes longer to look at).
    """

    name: str
    function: str
    package: str = "headwater"
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    shared: bool = False


@dataclass(frozen=True)
class Measured:
    """What a contender took. seconds, processor: of the work, wall and CPU. start: seconds before it.

    peak: bytes, the most that its processes held resident together, start included.
    """

    name: str
    version: str
    bytes: int
    documents: int
    seconds: float
    processor: float
    start: float
    peak: int
    result: dict[str, Any]

    @property
    def speed(self) -> float:
        """MB (10^6 bytes) a second."""
        return self.bytes / self.seconds / 1e6


def measure(contender: Contender) -> Measured | None:
    """Run a contender; None, with a line that says so, where its package is not installed.

    Raises: SystemExit with the end of its output when it fails.
    """
    found = version(contender.package)
    if not found:
        print(f"{contender.name}: {contender.package} is not installed, left out (pip install -e '.[bench]')")
        return None
    print(f"{contender.name} …", file=sys.stderr, flush=True)
    limits = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "POLARS_MAX", "NUMEXPR")
    environment = os.environ | {f"{name}_NUM_THREADS": str(contender.threads) for name in limits}
    environment["TOKENIZERS_PARALLELISM"] = "true" if contender.threads > 1 else "false"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asked, answer, said = (Path(folder) / name for name in ("asked.json", "answer.json", "said.txt"))
        asked.write_text(json.dumps({"function": contender.function, "settings": dict(contender.settings)}))
        allowed = sorted(os.sched_getaffinity(0))[-contender.threads :]
        with open(said, "wb") as out:
            process = subprocess.Popen(
                [sys.executable, _CONTENDER, asked, answer, ",".join(map(str, allowed))],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            sampler = _MemorySampler(process.pid, contender.shared)
            status = process.wait()
            peak = sampler.finish()
        if status:
            end = said.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{contender.name} failed with status {status}:\n{end}")
        told = json.loads(answer.read_text(encoding="utf-8"))
    peak = peak if contender.shared else max(peak, told["peak"])
    result = told["result"]
    size, documents = result.pop("bytes", 0), result.pop("documents", 0)
    times = (told["seconds"], told["processor"], told["start"])
    return Measured(contender.name, found, size, documents, *times, peak, result)


class _MemorySampler(threading.Thread):
    """Looks at the memory of a process and its descendants, again and again. shared: as Contender says."""

    def __init__(self, root: int, shared: bool) -> None:
        super().__init__(daemon=True)
        self._shared = shared
        self._root = psutil.Process(root)
        self._peak = 0
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(_LOOK_SHARED if self._shared else _LOOK):
            held = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    held += process.memory_full_info().pss if self._shared else process.memory_info().rss
            except psutil.Error:
                pass  # one of them has just ended; what the others hold counts
            self._peak = max(self._peak, held)

    def finish(self) -> int:
        self._over.set()
        self.join()
        return self._peak


@dataclass
class Outcome:
    """What a benchmark found: contenders in one table, each beside `against`; then lines of its own (Markdown)."""

    measured: Sequence[Measured]
    against: str = ""
    lines: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table and the lines, to paste into README.md."""
        peer = next((one for one in self.measured if one.name == self.against), None)
        rows = [
            ("", "MB/s", f"× {peer.name}" if peer else "", "wall s", "CPU s", "peak MiB", "start s"),
            ("---", "---:", "---:", "---:", "---:", "---:", "---:"),
        ]
        for one in self.measured:
            ratio = f"{one.speed / peer.speed:.1f}" if peer else ""
            numbers = (f"{one.seconds:.2f}", f"{one.processor:.2f}", f"{one.peak / 2**20:,.0f}", f"{one.start:.1f}")
            rows.append((f"{one.name} {one.version}", f"{one.speed:.2f}", ratio, *numbers))
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return "\n".join([table, "", *self.lines] if self.measured else self.lines)

    def write_json(self, path: Path, command: str) -> None:
        """All figures, with the machine and the command."""
        found = {
            "machine": describe(),
            "command": command,
            "measured": [asdict(one) | {"megabytes_per_second": one.speed} for one in self.measured],
            "facts": dict(self.facts),
        }
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

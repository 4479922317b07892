"""The process of one contender: contender.py ASKED.json ANSWER.json CORES. See measure.py."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path


def main(asked: Path, answer: Path, cores: str) -> None:
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})  # before any library counts them
    question = json.loads(asked.read_text(encoding="utf-8"))
    sys.path.append(str(Path(__file__).parents[2]))  # the package of this very tree, in any environment
    module, _, function = question["function"].partition(":")
    begin = time.perf_counter()
    work = getattr(importlib.import_module(module), function)(question["settings"])
    start = time.perf_counter() - begin
    used, begin = _processor(), time.perf_counter()
    result = work()
    seconds, processor = time.perf_counter() - begin, _processor() - used
    told = {"seconds": seconds, "processor": processor, "start": start, "peak": _peak(), "result": result}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _peak() -> int:
    """Bytes held at the most; `pipeline` may want libraries that this environment lacks, its memory.py none."""
    from pipeline.memory import peak_resident

    return peak_resident()


def _processor() -> float:
    """CPU seconds of this process and of those that it waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

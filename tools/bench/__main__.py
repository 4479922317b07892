"""Benchmarks against others' tools: `.venv/bin/python tools/bench NAME [options]`. README.md here tells the rest."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from machine import describe
from measure import Outcome

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removesuffix("_bench") for path in HERE.glob("*_bench.py"))


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        print(f"usage: .venv/bin/python tools/bench {{{','.join(NAMES)}}} [options]; --help after a name tells them")
        return 0 if name in ("-h", "--help") else 2
    bench = importlib.import_module(f"{name}_bench")
    parser = argparse.ArgumentParser(prog=f"tools/bench {name}", description=bench.__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    bench.add_options(parser)
    options = parser.parse_args(sys.argv[2:])
    print(f"{describe()}\n`tools/bench {' '.join(sys.argv[1:])}`\n", flush=True)
    outcome: Outcome = bench.run(options)
    print(outcome.markdown())
    if options.json:
        outcome.write_json(options.json, " ".join(sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

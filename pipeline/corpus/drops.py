"""What `pipeline shard --show-drops` prints: rules with their counts, or some documents that one rule dropped.

The text comes from corpora that nobody vouches for: whatever a terminal could act on is shown as an escape.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import heapq
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline import manifest
from pipeline.corpus.rules import rule_names
from pipeline.errors import DataError, RecipeError
from pipeline.printable import printable
from pipeline.progress import progress

SAMPLES = 20
# What comes after the rules of rules.py, by what their names begin with; what comes before is the readers'.
_LATER = ("decontaminate", "privacy", "duplicate", "near_duplicates", "duplicate_lines", "duplicate_paragraphs")


def in_order(rules: Iterable[str]) -> list[str]:
    """Names of rules in the order in which a document meets them."""
    known = {name: (1, number) for number, name in enumerate(rule_names())}
    later = {name: (2, number) for number, name in enumerate(_LATER)}
    return sorted(rules, key=lambda rule: (known.get(rule) or later.get(rule.partition(".")[0]) or (0, 0), rule))


def drop_lines(folder: Path, rule: str | None, seed: int) -> list[str]:
    """Lines to print. folder: the shard stage's; rule: None for the table of all; seed: of the choice.

    Raises: DataError when the stage has not finished, RecipeError when there is no such rule.
    """
    made = manifest.load(folder)
    if rule is None:
        return _table(made.counts)
    dropped = made.counts["dropped"]
    if rule not in dropped:
        known = sorted({*dropped, *rule_names()})
        if rule in known:
            return [f"{rule}: no document was dropped by it"]
        close = difflib.get_close_matches(rule, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"documents were dropped by {', '.join(dropped) or 'none'}"
        raise RecipeError(f"--show-drops: there is no rule '{rule}'; {hint}")
    count = dropped[rule]["documents"]
    chosen = _sample(folder, made, rule, seed)
    lines = [f"{rule}: {count:,} documents dropped; {len(chosen)} of them, drawn by seed {seed}"]
    for one in chosen:
        place = f"{printable(one['source'])}  {printable(one['id'])}"
        lines += ["", f"{place}  value {_shown(one['value'])}, threshold {_shown(one['threshold'])}"]
        if "cluster" in one:
            lines += [f"  {one['cluster']} stays for {one['cluster_size']} documents"]
        lines += [f"  {printable(one['text'])}"]
    return lines


def _table(counts: dict[str, Any]) -> list[str]:
    """Rules with documents, their share of those read, bytes and sources, most first."""
    dropped = sorted(counts["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))
    if not dropped:
        return ["no document was dropped"]
    read = max(counts["read"]["documents"], 1)
    lines = [f"{'rule':<52}{'documents':>14}{'share':>8}{'bytes':>20}  sources"]
    for rule, sizes in dropped:
        sources = ", ".join(name for name, one in counts["sources"].items() if rule in one["dropped"])
        share = sizes["documents"] / read
        lines.append(f"{rule:<52}{sizes['documents']:>14,}{share:>8.2%}{sizes['bytes']:>20,}  {sources}")
    return lines


def _sample(folder: Path, made: manifest.Manifest, rule: str, seed: int) -> list[dict[str, Any]]:
    """At most SAMPLES drops of a rule: those whose source and id hash lowest with the seed, in order of the files."""
    files = [output for output in made.outputs if output.path.startswith("dropped/")]
    key = seed.to_bytes(8, "little", signed=True)

    def ranked() -> Iterator[tuple[bytes, int, dict[str, Any]]]:
        number = 0
        with progress("shard: drops", sum(file.bytes for file in files), "B") as bar:
            for file in files:
                for one in _read(folder / file.path):
                    if one["rule"] == rule:
                        name = f"{one['source']}\0{one['id']}".encode()
                        yield hashlib.blake2b(name, key=key, digest_size=8).digest(), number, one
                        number += 1
                bar.advance(file.bytes)

    chosen = heapq.nsmallest(SAMPLES, ranked(), key=lambda item: item[:2])
    return [one for _, _, one in sorted(chosen, key=lambda item: item[1])]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Raises: DataError naming the file."""
    try:
        with gzip.open(path, "rb") as lines:
            yield from map(orjson.loads, lines)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete {path.parents[1]} and run shard again") from None


def _shown(value: Any) -> str:
    return "none" if value is None else printable(str(value))

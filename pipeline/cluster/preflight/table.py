"""A preflight report as a person reads it, within 100 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.cluster.preflight.verdict import BAD, Report, hosts_of

WIDTH = 100


def lines(report: Report) -> Iterator[str]:
    """The table, a line a node, then what holds for all, then problems, the worst first."""
    nodes = hosts_of(report.places)
    name = max([4, *(len(host) for host in nodes)])
    yield f"{'node':<{name}}  ranks  devices                       memory    free: run      /tmp   /dev/shm     clock"
    for host, ranks in nodes.items():
        place = ranks[0]
        devices = f"{place['devices']} × {place['device']}" if place["kind"] == "cuda" else _cores(place)
        clock = report.clocks.get(host)
        yield (
            f"{host:<{name}}  {_ranks([rank['rank'] for rank in ranks]):<5}  {devices[:28]:<28}  "
            f"{_gb(place['memory']):>6}  {_gb(place['free_run']):>11}  {_gb(place['free_tmp']):>8}  "
            f"{_gb(place['shm']):>9}  {'?' if clock is None else f'{clock * 1000:+.0f} ms':>8}"
        )
    versions = {key: value for place in report.places for key, value in place["versions"].items()}
    yield from _wrapped("versions: " + ", ".join(f"{key} {value}" for key, value in versions.items()))
    if report.all_reduce:
        shown = ", ".join(f"{size / 1e6:.0f} MB {speed:.3g} GB/s" for size, speed in report.all_reduce)
        yield from _wrapped(f"all-reduce over {report.world_size} ranks (bus bandwidth): {shown}")
    for pair, speed in sorted(report.pairs.items(), key=lambda item: item[1])[:10]:
        yield f"between {pair.replace(' ', ' and ')}: {speed:.3g} GB/s"
    if report.shared is not None:
        locks = {True: ", locks hold across nodes", False: ", locks hold on one node only", None: ""}[report.locks]
        yield f"{report.folder}: {'shared by all nodes' if report.shared else 'NOT shared'}{locks}"
    for problem in sorted(report.problems, key=lambda problem: problem.kind != BAD):
        yield problem.line()
    verdict = "good" if report.status() == 0 else "not fit"
    places = f"{report.world_size} ranks on {len(nodes)} node{'s' * (len(nodes) != 1)} ({report.launcher})"
    yield f"preflight: {verdict}, {places}, {report.seconds:.1f} s"


def _cores(place: dict[str, Any] | Any) -> str:
    return f"{place['devices']} core{'s' * (place['devices'] != 1)} a rank"


def _ranks(ranks: list[int]) -> str:
    whole = len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"{ranks[0]}-{ranks[-1]}" if whole else ",".join(map(str, ranks))


def _gb(value: int | None) -> str:
    if value is None:
        return "?"
    return (
        f"{value / 1e12:.1f} TB"
        if value >= 1e12
        else f"{value / 1e9:.0f} GB"
        if value >= 1e10
        else f"{value / 1e9:.1f} GB"
    )


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    yield line

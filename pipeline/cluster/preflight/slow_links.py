"""Which link or node is to blame when the network is slow; pure, no torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.cluster.preflight.verdict import Report

SLOW = 0.5  # of the fastest pair: under this a pair is slow
Pair = tuple[str, str]


def judge_links(report: Report, speeds: Mapping[Pair, float], floor: float, strict: bool) -> None:
    """Name slow nodes and pairs when the all-reduce stays under `floor` GB/s.

    speeds: GB/s of each pair of nodes. strict: `floor` is the recipe's own; links that are all slow are then a fault.
    """
    total = max(speed for _, speed in report.all_reduce)
    if total >= floor:
        return
    slow = slow_pairs(speeds, floor)
    nodes = common_nodes(slow, speeds)
    best = max(speeds.values(), default=0.0)
    for host in nodes:
        own = statistics.median(speed for pair, speed in speeds.items() if host in pair)
        report.bad(host, f"its links reach {own:.3g} GB/s, the best pair {best:.3g}")
    for pair in slow:
        if not set(pair) & set(nodes):
            report.fault(f"the link between {pair[0]} and {pair[1]} reaches {speeds[pair]:.3g} GB/s, others {best:.3g}")
    if not slow:
        text = f"all-reduce reaches {total:.3g} GB/s, under {floor:g} (preflight.min_bandwidth), all links alike"
        (report.fault if strict else report.warn)(text)


def slow_pairs(speeds: Mapping[Pair, float], floor: float) -> list[Pair]:
    """Pairs under `floor` and under half of the fastest; none when all links are alike."""
    limit = min(floor, SLOW * max(speeds.values(), default=0.0))
    return [pair for pair, speed in speeds.items() if speed < limit]


def common_nodes(slow: Sequence[Pair], speeds: Mapping[Pair, float]) -> list[str]:
    """Nodes that slow pairs have in common: each is in two of them at least, and in most of its own pairs."""
    found: list[str] = []
    left = list(slow)
    while left:
        counts = Counter(host for pair in left for host in pair)
        host, count = counts.most_common(1)[0]
        own = sum(host in pair and not set(pair) & set(found) for pair in speeds)
        if count < 2 or 2 * count <= own:
            break
        found.append(host)
        left = [pair for pair in left if host not in pair]
    return found

"""How much text each text tar holds, without reading it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline import manifest
from pipeline.corpus.text_tars import Part, tar_sizes


def source_of(tar: Path) -> str:
    """The source of a text tar `<source>-<split>-<part>.tar` (names of sources hold no hyphen)."""
    return tar.name.rsplit("-", 2)[0]


def by_source(tars: Iterable[Path]) -> dict[str, list[Path]]:
    """Text tars grouped by source, in order."""
    groups: dict[str, list[Path]] = {}
    for tar in tars:
        groups.setdefault(source_of(tar), []).append(tar)
    return groups


def text_bytes(text_folder: Path, part: Part) -> dict[Path, float]:
    """Bytes of text in each tar of a part, in order: its size times the share of text in all tars of its source.

    A tar of short documents is mostly headers, so that sizes alone would mislead by a factor of ten.
    Raises: DataError when stage shard has not finished.
    """
    counts = manifest.load(text_folder).counts["sources"]
    found: dict[Path, float] = {}
    sizes = tar_sizes(text_folder, part)
    for source, tars in by_source(sizes).items():
        share = counts[source][part]["bytes"] / sum(sizes[tar] for tar in tars)
        found |= {tar: sizes[tar] * share for tar in tars}
    return found

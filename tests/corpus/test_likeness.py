"""Likeness of dropped documents to what stays, found out of core: what comparing each pair of sketches finds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import keyed_rows
from pipeline.corpus.keyed_rows import KeyedPart, KeyedRowsWriter
from pipeline.corpus.likeness import measure_likeness, similarity
from pipeline.corpus.minhash import Signer
from pipeline.settings.duplicates import NearDuplicates


@pytest.mark.parametrize("run_rows", [3, 1 << 15])
def test_bits_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_rows: int) -> None:
    """Splits of several runs, one of them without records, and records without a signature."""
    monkeypatch.setattr(keyed_rows, "RUN_ROWS", run_rows)
    settings, draw = NearDuplicates(bands=9, rows=8), random.Random(5)  # 72 bits: two words
    signer = Signer(settings)
    parts: list[KeyedPart] = []
    sketches: dict[int, int] = {}
    first = 0
    for number, records in enumerate((20, 0, 35, 1)):
        path = tmp_path / str(number)
        with open(path, "wb") as handle:
            writer = KeyedRowsWriter(handle, settings.bands, signer.width)
            for record in range(records):
                text = " ".join(draw.choice("abcdef") for _ in range(30)) if record % 7 else ""
                rows = np.empty((settings.bands, signer.width), np.uint64)
                if signer.sign(text, record, rows):
                    writer.buffer[:, writer.used] = rows
                    writer.add()
                    sketches[first + record] = int(rows[0, 2]) | int(rows[0, 3]) << 64
            writer.flush()
        parts.append(KeyedPart(path, settings.bands, signer.width, first, records))
        first += records
    clusters = []
    known = sorted(sketches)
    for members in (known[:2], known[2:40:3], known[3:40:3]):
        best = draw.choice(members)
        clusters += [(member, best, len(members)) for member in members]
    (tmp_path / "clusters").write_bytes(np.array(sorted(clusters), np.uint64).tobytes())
    measure_likeness(tmp_path / "clusters", parts, 1 << 20, tmp_path / "found")
    assert np.fromfile(tmp_path / "found", np.uint64).reshape(-1, 2).tolist() == [
        [document, (sketches[document] ^ sketches[best]).bit_count()]
        for document, best, _ in sorted(clusters)
        if document != best
    ]


def test_no_clusters_no_rows(tmp_path: Path) -> None:
    (tmp_path / "signatures").touch()
    (tmp_path / "clusters").touch()
    parts = [KeyedPart(tmp_path / "signatures", 14, 4, 0, 0)]
    measure_likeness(tmp_path / "clusters", parts, 1 << 20, tmp_path / "found")
    assert (tmp_path / "found").read_bytes() == b""


def test_similarity_of_sketches() -> None:
    assert [similarity(differ, 112) for differ in (0, 17, 56, 80)] == [1.0, 0.696, 0.0, 0.0]

"""Manifests: the last act of a stage; what differs from them is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import manifest as manifests
from pipeline.errors import DataError
from pipeline.manifest import BUILDING, MANIFEST, Manifest, Work, stage_key


def finish(folder: Path) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "b.bin").write_bytes(b"bb")
    (folder / "a.bin").write_bytes(b"a")
    (folder / BUILDING).write_text("{}", encoding="utf-8")
    work = Work("shard", folder, "key", {"x": 1}, {"source": "f"})
    return work.finish([folder / "b.bin", folder / "a.bin"], {"documents": 2}, {"loss": 0.1 + 0.2})


def test_a_manifest_reads_back_equal(tmp_path: Path) -> None:
    made = finish(tmp_path / "text")
    assert manifests.load(tmp_path / "text") == made
    assert [output.path for output in made.outputs] == ["a.bin", "b.bin"]
    assert made.total_bytes() == 3
    assert made.metrics["loss"] == 0.1 + 0.2
    assert made.software["python"]
    assert not (tmp_path / "text" / BUILDING).exists()


def test_the_fingerprint_ignores_when_and_how_fast(tmp_path: Path) -> None:
    made = finish(tmp_path / "text")
    assert replace(made, seconds=9.0, finished="2000", counts={}).fingerprint == made.fingerprint
    assert replace(made, inputs={"source": "g"}).fingerprint != made.fingerprint


def test_the_key_follows_from_settings_inputs_and_version() -> None:
    key = stage_key("shard", 1, {"a": 1}, {"b": "c"})
    assert key == stage_key("shard", 1, {"a": 1}, {"b": "c"})
    others = [("tokens", 1, {"a": 1}, {"b": "c"}), ("shard", 2, {"a": 1}, {"b": "c"}), ("shard", 1, {"a": 2}, {})]
    assert key not in {stage_key(*other) for other in others}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a.bin").unlink(), "a.bin: missing"),
        (lambda folder: (folder / "a.bin").write_bytes(b"aa"), "a.bin: 2 bytes, but its manifest says 1"),
        (lambda folder: (folder / "a.bin").write_bytes(b"x"), "its checksum differs"),
    ],
)
def test_changed_outputs_are_named(tmp_path: Path, damage: object, message: str) -> None:
    made = finish(tmp_path / "text")
    damage(tmp_path / "text")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        manifests.verify(tmp_path / "text", made, checksums=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": 1}', '{"fingerprint": 1, "outputs": 5}'])
def test_damaged_manifests_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a manifest"):
        manifests.load(tmp_path)


def test_a_missing_manifest_names_the_stage_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has not finished"):
        manifests.load(tmp_path / "text")

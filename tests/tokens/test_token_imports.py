"""Token files of other programs: Megatron's format written by hand from its definition, `.npy`, raw integers."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command import run_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_recipe
from pipeline.errors import DataError, RecipeError
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.stages import stages
from pipeline.tokens.data import TokenData
from pipeline.tokens.encode import Encoder
from pipeline.tokens.imports import flat
from pipeline.tokens.imports.flat import FlatFile
from pipeline.tokens.imports.megatron import MegatronFile
from pipeline.tokens.imports.pieces import Batch
from pipeline.tokens.token_tars import documents as documents_of


def write_megatron(stem: Path, documents: Sequence[Sequence[Sequence[int]]], code: int = 8, dtype: str = "<u2") -> Path:
    """Documents of sequences of ids, as Megatron-LM's IndexedDatasetBuilder leaves them. Returns the .bin."""
    sequences = [np.array(sequence, dtype) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    firsts = np.cumsum([0, *map(len, documents)]).astype("<i8")
    stem.with_suffix(".bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(firsts))
    stem.with_suffix(".idx").write_bytes(head + lengths.tobytes() + offsets.astype("<i8").tobytes() + firsts.tobytes())
    return stem.with_suffix(".bin")


def read(file: MegatronFile | FlatFile, tokens: int) -> list[list[int]]:
    """All documents, through pieces of so many tokens."""
    found: list[list[int]] = []
    for piece in file.pieces(tokens):
        for batch in file.batches(piece):
            starts = [0, *batch.ends[:-1].tolist()]
            found += [batch.ids[a:b].tolist() for a, b in zip(starts, batch.ends.tolist(), strict=True)]
    return found


# --- Megatron ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (3, "<i2"), (1, "u1")])
@pytest.mark.parametrize("tokens", [1, 4, 1000])
def test_documents_of_a_megatron_pair(tmp_path: Path, code: int, dtype: str, tokens: int) -> None:
    documents = [[[1, 2, 3]], [[4], [5, 6]], [[]], [[7]], []]
    file = MegatronFile(write_megatron(tmp_path / "x", documents, code, dtype))
    assert (file.documents, file.dtype) == (5, np.dtype(dtype))
    assert read(file, tokens) == [[1, 2, 3], [4, 5, 6], [7]]
    assert sum(piece.tokens for piece in file.pieces(tokens)) == 7


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (0, b"MMIDIDY", "does not begin as an index of Megatron"),
        (9, b"\x02", "has version 2; only version 1 is known"),
        (17, b"\x06", "its type of ids has code 6"),
        (18, b"\x04", "bytes, but one of 4 sequences"),
        (34 + 3 * 4 + 8, b"\x09", "are not where x.bin"),
        (34, b"\x09", "are not where x.bin"),
        (-8, b"\x02", "its documents do not span"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, place: int, content: bytes, message: str) -> None:
    path = write_megatron(tmp_path / "x", [[[1, 2]], [[3, 4, 5]], [[6]]])
    whole = bytearray(path.with_suffix(".idx").read_bytes())
    place %= len(whole)
    whole[place : place + len(content)] = content
    path.with_suffix(".idx").write_bytes(whole)
    with pytest.raises(DataError, match=rf"x\.idx: .*{message}"):
        read(MegatronFile(path), 100)


def test_a_cut_pair_is_named(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "x", [[[1, 2]], [[3, 4, 5]]])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"are not where x\.bin \(8 bytes\) has them"):
        read(MegatronFile(path), 100)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="no whole number of uint16 ids"):
        MegatronFile(path)
    path.with_suffix(".idx").write_bytes(b"MM")
    with pytest.raises(DataError, match="does not begin as an index"):
        MegatronFile(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"x\.idx: cannot be read .*a pair of x\.bin and x\.idx"):
        MegatronFile(path)


# --- rows of ids ---------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 30), max_size=30),
    tail=st.integers(0, 40),
    tokens=st.integers(1, 60),
    batch=st.integers(1, 20),
)
@settings(deadline=None, max_examples=60)
def test_any_pieces_of_a_row_give_the_same_tokens(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tail: int, tokens: int, batch: int
) -> None:
    """With end-of-text within reach the documents are the same too, whatever the pieces."""
    row = np.array([id for number, length in enumerate(lengths) for id in [*[number + 1] * length, 0]] + [99] * tail)
    path = tmp_path_factory.mktemp("flat") / "x.bin"
    row.astype("<u2").tofile(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "BATCH_TOKENS", batch)
        patch.setattr(flat, "CUT", 35)
        found = read(FlatFile(path, "uint16", 0), tokens)
    assert [id for document in found for id in document] == row.tolist()
    whole = [[number + 1] * length + [0] for number, length in enumerate(lengths)]
    assert found[: len(whole)] == whole
    assert sum(map(len, found[len(whole) :])) == tail


def test_what_is_no_row_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, message in (
        (np.zeros((2, 2), np.int32), r"shape \(2, 2\)"),
        (np.zeros(3, np.float32), "float32"),
        (np.array([{}]), "not an .npy array"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            FlatFile(path, None, 0)
    np.savez(tmp_path / "x.npz", np.zeros(3, np.int32))
    (tmp_path / "x.npz").replace(path)
    with pytest.raises(DataError, match=r"not an \.npy array"):
        FlatFile(path, None, 0)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"not an \.npy array"):
        FlatFile(path, None, 0)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="3 bytes are no whole number of uint32 ids"):
        FlatFile(path, "uint32", 0)
    with pytest.raises(DataError, match="gone: cannot be read"):
        FlatFile(tmp_path / "gone", "uint16", 0)


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(made: Recipe, documents: dict[str, list[str]]) -> list[list[int]]:
    """The ids of every document that has text, without end-of-text."""
    encoder = Encoder.open(made.workdir / "tokenizer", fast=False)
    return [ids for texts in documents.values() for ids in encoder.reference_ids(texts) if ids]


def write_recipe(path: Path, made: Recipe, *imports: dict[str, Any], **tokenize: Any) -> Path:
    value = {
        "name": "imported",
        "workdir": str(path.parent / "run"),
        "tokenizer": {"path": str(made.workdir / "tokenizer")},
        "tokenize": {"workers": 1, "shard_tokens": 9000, "member_tokens": 2000, "imports": imports, **tokenize},
        "model": {"dim": 16, "layers": 1, "heads": 1, "kv_heads": 1, "max_seq_len": 32},
        "pretrain": {
            "tokens": 640, "seq_len": 32, "global_batch": 4, "micro_batch": 4, "validation_windows": 2,
            "self_test": False,
        },
        "tracking": {"enabled": False},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(json.loads(json.dumps(value))))
    return path


def test_a_run_from_megatron_tokens_alone(
    made: Recipe, encoded: list[list[int]], documents: dict[str, list[str]], tmp_path: Path
) -> None:
    """No text, no shard stage: tokenizer, tokenize, and a few steps of training."""
    write_megatron(tmp_path / "mine", [[ids] for ids in encoded], 4, "<i4")
    meg = {"name": "meg", "path": str(tmp_path / "mine"), "format": "megatron", "validation": 0.2}
    path = write_recipe(tmp_path / "mine.yaml", made, meg)
    recipe = load_recipe(str(path), [])
    assert list(stages(recipe)) == ["tokenizer", "tokenize", "pretrain", "export", "evaluate"]
    run_stage(recipe, "tokenizer")
    found = run_stage(recipe, "tokenize")
    assert run_stage(recipe, "tokenize").finished == found.finished  # skipped
    assert list(found.inputs) == ["import:meg", "tokenizer"]
    folder = recipe.workdir / "tokens"
    data = TokenData.open(folder)
    rows = {
        part: [row.tolist() for shard in shards["meg"] for row in documents_of(folder, shard, data.index.dtype)]
        for part, shards in data.index.parts.items()
    }
    assert sorted(rows["train"] + rows["validation"]) == sorted([*ids, 0] for ids in encoded)
    assert 0 < len(rows["validation"]) < len(encoded) / 2
    total = sum(len(text.encode()) for texts in documents.values() for text in texts)
    assert data.bytes("train") + data.bytes("validation") == total
    done = run_pipeline("pretrain", path)
    assert done.returncode == 0, done.stderr
    losses = json.loads((recipe.workdir / "checkpoints" / "final" / "losses.json").read_text())["losses"]
    assert len(losses) == 5


def test_imports_beside_text(made: Recipe, encoded: list[list[int]], tmp_path: Path) -> None:
    """Text and tokens in one mix; the bytes do not depend on the processes."""
    ids = np.array([id for row in encoded for id in [*row, 0]])
    np.save(tmp_path / "a.npy", ids.astype(np.int64))
    ids.astype("<u4").tofile(tmp_path / "b.bin")
    (tmp_path / "run").mkdir()
    for name in ("text", "tokenizer"):
        (tmp_path / "run" / name).symlink_to(made.workdir / name)
    imports = (
        {"name": "a", "path": str(tmp_path / "a.npy"), "format": "npy", "weight": 2},
        {"name": "b", "path": str(tmp_path / "*.bin"), "format": "raw", "dtype": "uint32", "validation": 0},
    )
    shas = []
    for workers in (1, 2):
        value = yaml.safe_load(write_recipe(tmp_path / "mine.yaml", made, *imports, workers=workers).read_text())
        value["corpus"] = {"sources": [{"name": "python", "type": "text", "path": "x"}]}
        recipe = Recipe.model_validate(value)
        assert recipe.tokenize.imports[0].weight == 2
        from pipeline.manifest import Work
        from pipeline.tokens import tokenize
        from pipeline.tracking import Tracker

        folder = tmp_path / f"tokens-{workers}"
        folder.mkdir()
        tokenize.run(recipe, Work("tokenize", folder, "key", {}, {}), Tracker())
        data = TokenData.open(folder)
        assert data.sources("train") == ["a", "b", "chinese", "python"]
        assert data.tokens("train", "b") == len(ids) and data.documents("train", "b") == len(encoded)
        shas.append([shard.sha256 for shard in data.index.shards()])
    assert shas[0] == shas[1]


def test_ids_that_are_not_in_the_vocabulary(made: Recipe, tmp_path: Path) -> None:
    for ids, shown in (([5, 700, 0], "token 1 is 700, of a vocabulary of 700"), ([5, 6, -1], "token 2 is -1")):
        np.save(tmp_path / "x.npy", np.array(ids, np.int32))
        path = write_recipe(tmp_path / "mine.yaml", made, {"name": "x", "path": str(tmp_path), "format": "npy"})
        recipe = load_recipe(str(path), [])
        run_stage(recipe, "tokenizer")
        with pytest.raises(DataError, match=rf"x\.npy: {shown}.*tokenizer\.path is not the tokenizer that made it"):
            run_stage(recipe, "tokenize")


def test_a_row_without_end_of_text_is_cut_not_ended() -> None:
    from pipeline.tokens.imports.documents import end_documents

    ids, ends = end_documents(Batch(np.array([5, 6, 7]), np.array([3]), 0, ended=False), 0)
    assert (ids.tolist(), ends.tolist()) == ([5, 6, 7], [3])
    ids, ends = end_documents(Batch(np.array([5, 0, 6, 7]), np.array([2, 3, 4]), 0), 0)
    assert (ids.tolist(), ends.tolist()) == ([5, 0, 6, 0, 7, 0], [2, 4, 6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "raw"}, "dtype is for format raw, which needs it"),
        ({"dtype": "uint16"}, "dtype is for format raw"),
        ({"format": "hdf5"}, "format"),
    ],
)
def test_recipes_that_cannot_be(made: Recipe, tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = write_recipe(tmp_path / "mine.yaml", made, {"name": "x", "path": "x", "format": "npy", **change})
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path), [])


def test_imports_need_their_tokenizer(made: Recipe, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", made, {"name": "x", "path": "x", "format": "npy"})
    with pytest.raises(RecipeError, match=r"tokenize\.imports needs tokenizer\.path"):
        load_recipe(str(path), ["tokenizer.path=null"])
    with pytest.raises(DataError, match="x"):
        stages(load_recipe(str(path), []))["tokenize"].sources(load_recipe(str(path), []))

"""The encoder: exact, bounded, and deaf to special tokens in the text."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.recipe import Recipe
from pipeline.tokens import encode
from pipeline.tokens.encode import Encoder
from pipeline.tokens.special_tokens import special_token


@pytest.fixture(scope="module")
def folder(made: Recipe) -> Path:
    return made.workdir / "tokenizer"


@pytest.fixture(scope="module")
def fast(folder: Path) -> Encoder:
    return Encoder.open(folder)


@given(st.lists(st.text(max_size=300), max_size=6))
@settings(deadline=None)
def test_any_text_comes_back_and_the_engines_agree(fast: Encoder, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    rows = fast.encode(texts)
    assert [row.tolist() for row in rows] == fast.reference_ids(texts)
    assert [fast.decode(row) for row in rows] == texts


def test_real_text_with_each_engine(fast: Encoder, folder: Path, documents: dict[str, list[str]]) -> None:
    slow = Encoder.open(folder, fast=False)
    assert (fast.engine, slow.engine) == ("gigatoken", "tokenizers")
    for texts in documents.values():
        ids, ends = fast.encode_batch(texts)
        other_ids, other_ends = slow.encode_batch(texts)
        assert np.array_equal(ids, other_ids) and np.array_equal(ends, other_ends)
        assert ids.dtype == np.uint32 and len(ends) == len(texts)
    assert (fast.vocab_size, fast.eos_id, fast.differed) == (700, 0, 0)


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])
def test_special_tokens_in_a_document_are_text(folder: Path, engine: str) -> None:
    text = "<|endoftext|>a<|im_start|>assistant<|pad|><|im_end|>"
    encoder = Encoder.open(folder, fast=engine == "gigatoken")
    (row,) = encoder.encode([text])
    assert encoder.engine == engine
    assert row.min() > 3
    assert encoder.decode(row) == text


def test_no_text(fast: Encoder) -> None:
    assert fast.encode([]) == []
    assert [len(row) for row in fast.encode(["", "a", ""])] == [0, 1, 0]


def test_another_id_makes_tokenizers_take_over(
    folder: Path, documents: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """gigatoken is given another vocabulary, as a fault of its own would."""
    encoder = Encoder.open(folder)
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["merges"] = value["model"]["merges"][:-50]
    encoder._json = json.dumps(value)
    encoder._start_fast()
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        rows = encoder.encode(documents["python"])
    assert [row.tolist() for row in rows] == encoder.reference_ids(documents["python"])
    assert (encoder.engine, encoder.differed) == ("tokenizers", 1)
    assert "gigatoken gave other ids" in encoder.why


def test_documents_are_checked_long_after_the_first(folder: Path) -> None:
    encoder = Encoder.open(folder)
    encoder._unchecked = 0
    texts = [f"document {number}" for number in range(2000)]
    checked: list[str] = []
    compare = encoder.reference_ids
    encoder.reference_ids = lambda chosen: checked.extend(chosen) or compare(chosen)  # type: ignore
    encoder.encode(texts)
    assert 1 <= len(checked) <= 20
    first, checked[:] = list(checked), []
    for text in texts:  # which are chosen does not depend on the batches
        encoder.encode([text])
    assert checked == first


def test_an_unknown_pre_tokenizer_falls_back(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("tokenizer*.json"):
        shutil.copy(file, tmp_path)
    value = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\d+|\D"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    encoder = Encoder.open(tmp_path)
    assert encoder.engine == "tokenizers"
    assert "gigatoken cannot load this tokenizer" in encoder.why
    assert [encoder.decode(row) for row in encoder.encode(["ab 12"])] == ["ab 12"]


def test_a_grown_cache_is_thrown_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CACHE_BYTES", -1)
    monkeypatch.setattr(encode, "CACHE_CHECK_BYTES", 0)
    encoder = Encoder.open(folder)
    engines = set()
    wanted = encoder.reference_ids(["some text"])
    for _ in range(3):
        assert [row.tolist() for row in encoder.encode(["some text"])] == wanted
        engines.add(id(encoder._fast))
    assert encoder.engine == "gigatoken"
    assert encoder._size_when_new == 0  # made anew a moment ago


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
        Encoder.open(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"tokenizer.json: cannot be read"):
        Encoder.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(DataError, match="names no eos_token"):
        Encoder.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}', encoding="utf-8")
    assert special_token(tmp_path, "eos_token") == "</s>"
    with pytest.raises(DataError, match="not a tokenizer that `tokenizers` can load"):
        Encoder.open(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(DataError, match="'</s>' is not in its vocabulary"):
        Encoder.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="not a JSON mapping"):
        Encoder.open(tmp_path)

"""The encoder: exact, bounded, and deaf to special tokens in the text."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.recipe import Recipe
from pipeline.tokens import bpe_tables, fast_encode
from pipeline.tokens.encode import Encoder
from pipeline.tokens.fast_encode import is_chinese
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
    assert "the fast encoder gave other ids" in encoder.why


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
    monkeypatch.setattr(fast_encode, "CACHE_BYTES", -1)
    monkeypatch.setattr(fast_encode, "CACHE_CHECK_BYTES", 0)
    encoder = Encoder.open(folder)
    wanted = encoder.reference_ids(["some text"])
    for _ in range(3):
        assert [row.tolist() for row in encoder.encode(["some text"])] == wanted
    assert encoder.engine == "gigatoken"
    assert encoder._fast is not None
    assert encoder._fast._size_when_new == 0  # made anew a moment ago


CHINESE = "的一是在不了，有和人这。" * 40
MIXED = [CHINESE, "English, and much of it. " * 30, "", "中" * 500, CHINESE + " it's", "one word 的"]


def test_chinese_goes_to_the_compiled_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encode, "COMPILED_AFTER", 1)
    monkeypatch.setattr(fast_encode, "FIRST_BYTES", 1)
    encoder = Encoder.open(folder)
    texts = [text.encode() for text in MIXED]
    assert [is_chinese(text) for text in texts] == [True, False, False, True, True, False]
    assert not is_chinese(CHINESE)  # a str
    wanted = encoder.reference_ids(texts)
    for _ in range(2):
        ids, ends = encoder.encode_batch(texts)
        assert [row.tolist() for row in np.split(ids, ends[:-1])] == wanted
    assert encoder._fast is not None and encoder._fast._compiled is not None
    taken: list[bytes] = []
    inner = encoder._fast._compiled.encode
    monkeypatch.setattr(encoder._fast._compiled, "encode", lambda *words: taken.extend(words[0]) or inner(*words))
    gigatoken: list[bytes] = []
    outer = encoder._fast._with_gigatoken
    monkeypatch.setattr(encoder._fast, "_with_gigatoken", lambda some: gigatoken.extend(some) or outer(some))
    for some in (texts, texts[:1], texts[1:3], texts[3:4]):
        ids, ends = encoder._fast.encode(some)
        assert [row.tolist() for row in np.split(ids, ends[:-1])] == encoder.reference_ids(some)
    assert taken == [texts[0], texts[3], texts[4], texts[0], texts[3]]
    refused = texts[3]  # a word of 1,500 bytes
    assert gigatoken == [texts[1], texts[2], refused, texts[5], texts[1], texts[2], refused]


def test_a_compiled_encoder_that_errs_makes_tokenizers_take_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here it is not used yet, but another process may have used it."""

    def wrong(value: dict[str, Any]) -> Any:
        tables = bpe_tables.read_tables(value)
        assert tables is not None
        return dataclasses.replace(tables, byte_ids=np.roll(tables.byte_ids, 1))

    monkeypatch.setattr(fast_encode, "COMPILED_AFTER", 1)
    monkeypatch.setattr(fast_encode, "read_tables", wrong)
    encoder = Encoder.open(folder)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        ids, _ = encoder.encode_batch([CHINESE.encode()])
    assert ids.tolist() == encoder.reference_ids([CHINESE])[0]
    assert "the fast encoder gave other ids than tokenizers" in caplog.text
    assert (encoder.engine, encoder.differed) == ("tokenizers", 1)


def test_what_is_refused_is_not_taken_for_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encode, "COMPILED_AFTER", 1)
    monkeypatch.setattr(fast_encode, "FIRST_BYTES", 2 * len(CHINESE.encode()))
    monkeypatch.setattr(fast_encode, "CHECK_MAX", len(CHINESE.encode()))
    encoder = Encoder.open(folder)
    assert encoder._fast is not None
    for text, compared in (("中" * 500, 0), (CHINESE * 2, 0), (CHINESE, 1), ("中" * 500, 1), (CHINESE, 2)):
        assert encoder._fast._compiled is None
        encoder.encode_batch([text.encode()])
        assert encoder._fast._compared == compared * len(CHINESE.encode())
    assert encoder._fast._compiled is not None


def test_a_tokenizer_that_the_compiled_encoder_does_not_know(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Any]] = []
    monkeypatch.setattr(fast_encode, "COMPILED_AFTER", 1)
    monkeypatch.setattr(fast_encode, "read_tables", tried.append)
    encoder = Encoder.open(folder)
    for _ in range(3):
        ids, _ = encoder.encode_batch([CHINESE.encode()])
        assert ids.tolist() == encoder.reference_ids([CHINESE])[0]
    assert (encoder.engine, len(tried)) == ("gigatoken", 1)


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

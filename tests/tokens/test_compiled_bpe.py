"""Compiled BPE gives the ids of `tokenizers`, for any text and vocabulary that it takes, and refuses the others."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from pipeline.tokens import bpe_tables, compiled_bpe
from pipeline.tokens.bpe_tables import MOST_MERGES, read_tables
from pipeline.tokens.compiled_bpe import LONGEST, CompiledBpe
from pipeline.tokens.pre_tokenizers import pre_tokenizer

COMMON = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多"
)
RARE = "龘齉爨鱻麤龖"
MARKS = "，。、！？：；“”（）《》 \n"
ODD = "'sStrRevmlLd09٣½ \t\n\r\u00a0\u0085\u2028\u3000，。“”、-_()é\u0301ßñкатかなカナ한글ไทยﬅﬆK"
ODD += "的一是在龘\U0001f600\U0001f1e8\U00020000"


def chinese(characters: int, seed: int = 1) -> str:
    """Runs of common characters, now and then a rare one, with marks between."""
    random_ = random.Random(seed)
    words = ["".join(random_.choices(COMMON, k=random_.choice((1, 2, 2, 2, 3)))) for _ in range(300)]
    text = ""
    while len(text) < characters:
        text += "".join(random_.choices(words, k=random_.randint(1, 6)))
        text += random_.choice(RARE) * (random_.random() < 0.1) + random_.choice(MARKS)
    return text


def trained(pattern: str) -> Tokenizer:
    """A small vocabulary in which marks have merged with first bytes, and characters with each other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    english = "It's what they'll say: 'we've been there', in 1984, for 20 years.\n\n  It isn't.  I'm sure he'd go.\n"
    tokenizer.train_from_iterator(
        [chinese(20_000), english * 20, "かなとカナを書く。" * 20, "한글을 쓴다. " * 20], trainer
    )
    return tokenizer


@pytest.fixture(scope="module", params=["llama3", "qwen2"])
def reference(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


@pytest.fixture(scope="module")
def compiled(reference: Tokenizer) -> CompiledBpe:
    tables = read_tables(json.loads(reference.to_str()))
    assert tables is not None
    assert (tables.characters >= 0).sum() > 50  # common characters are tokens
    assert (np.array([tables.left_at, tables.right_at]) < MOST_MERGES).sum() > 3  # and some merges take a part of one
    return CompiledBpe(tables)


def rows(compiled: CompiledBpe, texts: list[str], threads: int = 1) -> list[list[int] | None]:
    """The ids of each text; None where it is refused."""
    ids, ends, refused = compiled.encode([text.encode() for text in texts], threads)
    assert ids.dtype == np.uint32
    assert ends[-1] == len(ids)
    split = np.split(ids, ends[:-1])
    assert not any(len(row) for row, no in zip(split, refused, strict=True) if no)
    return [None if no else row.tolist() for row, no in zip(split, refused, strict=True)]


@given(st.lists(st.text(alphabet=ODD + COMMON[:9], max_size=60), min_size=1, max_size=4))
@settings(deadline=None, max_examples=600)
def test_odd_text(reference: Tokenizer, compiled: CompiledBpe, texts: list[str]) -> None:
    assert rows(compiled, texts) == [reference.encode(text).ids for text in texts]


@given(st.lists(st.text(max_size=100), min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_text(reference: Tokenizer, compiled: CompiledBpe, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for text, row in zip(texts, rows(compiled, texts), strict=True):
        if row is None:
            assert any(ord(letter) >= 0x30000 or letter == "ſ" for letter in text)
        else:
            assert row == reference.encode(text).ids


def test_much_chinese(reference: Tokenizer, compiled: CompiledBpe, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [chinese(2000, seed) for seed in range(20)]
    wanted = [reference.encode(text).ids for text in texts]
    assert rows(compiled, texts) == wanted
    monkeypatch.setattr(compiled_bpe, "PIECE", 1)
    assert rows(compiled, texts, threads=3) == wanted
    one = reference.encode("的").ids
    assert rows(compiled, ["", "的", "", ""], threads=8) == [[], one, [], []]
    assert rows(compiled, ["的", "的", "", ""], threads=2) == [one, one, [], []]
    assert [len(part) for part in compiled.encode([])] == [0, 0, 0]


def test_what_is_refused(reference: Tokenizer, compiled: CompiledBpe) -> None:
    fits, too_long = "的" * (LONGEST // 3), "一" * (LONGEST // 3 + 1)
    texts = [fits, too_long, "a", "'ſ", "\U00030000", " " * LONGEST + "\n", "-" * LONGEST, "b"]
    wanted = [None if number in (1, 3, 4, 5) else reference.encode(text).ids for number, text in enumerate(texts)]
    assert rows(compiled, texts) == wanted
    # bytes that are no text: nothing beyond the text is read, and its neighbours are as they are
    for broken in (b"\xe4\xbd", b"\xf0", b"'", b"\xff\xff", b"\x80"):
        ids, ends, _ = compiled.encode([b"a", broken, "的".encode()])
        assert ids[: ends[0]].tolist() == reference.encode("a").ids
        assert ids[ends[1] :].tolist() == reference.encode("的").ids


VOCABULARY = json.loads(trained("llama3").to_str())["model"]["vocab"]
B0, B1, B2 = "ä¸Ģ"  # the bytes of 一, as tokenizer.json writes them


@pytest.mark.parametrize(
    ("merges", "text"),
    [
        ([(B0, B1), ("y", B0 + B1), (B0 + B1, B2)], "y一"),  # y takes its beginning before it is whole
        ([(B2, "y"), (B0, B1), (B0 + B1, B2)], "一y"),  # y takes its end
        ([(B1, B2), (B0 + B1 + B2, "y"), ("y", "z"), (B0, B1 + B2)], "一yz"),  # z takes y before it is whole
    ],
)
def test_a_character_that_is_not_whole_in_time_begins_as_bytes(merges: list[tuple[str, str]], text: str) -> None:
    words = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)]
    model = models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer("llama3")
    tables = read_tables(json.loads(tokenizer.to_str()))
    assert tables is not None
    assert rows(CompiledBpe(tables), [text]) == [tokenizer.encode(text).ids]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": json.loads(trained("gpt2").to_str())["pre_tokenizer"]},
        {"pre_tokenizer": None},
        {"added_tokens": [{"id": 5, "content": "x", "special": False}]},
        {"model": {"ignore_merges": True}},
        {"model": {"dropout": 0.1}},
        {"model": {"type": "Unigram"}},
        {"model": {"merges": [["a", "b"]]}},
        {"model": {"vocab": {"a": 0}}},
        {"model": {"vocab": VOCABULARY | {"twice": 0}}},  # two words of one number
        {"model": {"vocab": VOCABULARY | {"far": bpe_tables.MOST_WORDS}}},
        {"model": {"merges": [["a", ""]]}},
    ],
)
def test_vocabularies_that_are_not_taken(reference: Tokenizer, change: dict[str, Any]) -> None:
    value = json.loads(reference.to_str())
    assert read_tables(value) is not None
    value["model"] |= change.get("model", {})
    assert read_tables(value | {key: new for key, new in change.items() if key != "model"}) is None


def test_merges_that_are_not_taken(reference: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    value = json.loads(reference.to_str())
    twice = value | {"model": value["model"] | {"merges": [*value["model"]["merges"], value["model"]["merges"][0]]}}
    assert read_tables(twice) is None
    monkeypatch.setattr(bpe_tables, "MOST_MERGES", len(value["model"]["merges"]))
    assert read_tables(value) is not None
    monkeypatch.setattr(bpe_tables, "MOST_MERGES", len(value["model"]["merges"]) - 1)
    assert read_tables(value) is None

"""Tokenizers that others made: where the end of a text is named, tokens added, WordPiece and Unigram, comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipeline.errors import DataError, RecipeError
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe, TokenizerSettings
from pipeline.tokens.encode import Encoder
from pipeline.tokens.special_tokens import end_of_text

StageRunner = Callable[[Recipe, str], Manifest]


@pytest.fixture
def bare(made: Recipe, tmp_path: Path) -> Path:
    """A folder with GPT-2's kind of tokenizer: one special token, which no file names as the end of a text."""
    folder = tmp_path / "bare"
    folder.mkdir()
    value = json.loads((made.workdir / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    value["added_tokens"] = value["added_tokens"][:1]
    for token in ("<|pad|>", "<|im_start|>", "<|im_end|>"):
        value["model"]["vocab"][f"unused{value['model']['vocab'].pop(token)}"] = len(value["model"]["vocab"]) + 1
    words = sorted(value["model"]["vocab"], key=value["model"]["vocab"].get)
    assert len(words) == 700
    value["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def use(made: Recipe, workdir: Path, stage: StageRunner, **settings: Any) -> Manifest:
    if not (workdir / "text").exists():
        (workdir / "text").symlink_to(made.workdir / "text")
    return stage(Recipe.model_validate({"workdir": workdir, "tokenizer": settings}), "tokenizer")


def test_where_the_end_of_a_text_is_named(bare: Path) -> None:
    assert end_of_text(bare) is None
    (bare / "config.json").write_text('{"eos_token_id": 7}')
    value = json.loads((bare / "tokenizer.json").read_text(encoding="utf-8"))
    assert value["model"]["vocab"][end_of_text(bare) or ""] == 7
    (bare / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    assert end_of_text(bare) == "<|endoftext|>"
    (bare / "special_tokens_map.json").write_text('{"eos_token": {"content": "<b>"}}')
    assert end_of_text(bare) == "<b>"
    (bare / "tokenizer_config.json").write_text('{"eos_token": "<a>"}')
    assert end_of_text(bare) == "<a>"
    for name in ("tokenizer_config", "special_tokens_map"):
        (bare / f"{name}.json").unlink()
    (bare / "generation_config.json").write_text('{"eos_token_id": 7000}')
    with pytest.raises(DataError, match=r"generation_config\.json: its eos_token_id is 7000"):
        end_of_text(bare)


def test_the_recipe_names_it(made: Recipe, bare: Path, stage: StageRunner, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set tokenizer\.eos_token .*; its special tokens are <\|endoftext\|>"):
        use(made, tmp_path, stage, path=str(bare))
    use(made, tmp_path, stage, path=str(bare), eos_token="<|endoftext|>")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|endoftext|>", 0)
    assert Encoder.open(tmp_path / "tokenizer").eos_id == 0
    assert not (bare / "tokenizer_config.json").exists()
    with pytest.raises(DataError, match="'<nowhere>' is not in its vocabulary"):
        use(made, tmp_path, stage, path=str(bare), eos_token="<nowhere>")


def test_tokens_are_added_behind_the_others(
    made: Recipe, bare: Path, stage: StageRunner, tmp_path: Path, documents: dict[str, list[str]]
) -> None:
    (bare / "generation_config.json").write_text('{"eos_token_id": 0}')
    (bare / "vocab.json").write_text("{}")  # would contradict
    added = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|tool|>", "<|endoftext|>"]
    found = use(made, tmp_path, stage, continue_from=str(bare), added_tokens=added)
    folder = tmp_path / "tokenizer"
    assert found.counts["vocab_size"] == 704 and found.counts["engine"] == "gigatoken"
    assert not (folder / "vocab.json").exists()
    old, new = Encoder(Path(bare, "tokenizer.json").read_text(encoding="utf-8"), None, "old"), Encoder.open(folder)
    for texts in documents.values():
        assert old.reference_ids(texts) == new.reference_ids(texts)
    assert [new.vocabulary()[token] for token in added] == [700, 701, 702, 703, 0]
    assert {word: number for word, number in new.vocabulary().items() if number < 700} == old.vocabulary()
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (len(loaded), loaded.eos_token_id, loaded.pad_token_id) == (704, 0, 700)
    assert loaded("<|im_start|>a<|tool|>")["input_ids"][::2] == [701, 703]
    chat = loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert chat == "<|im_start|>user\nx<|im_end|>\n"
    again = use(made, tmp_path, stage, continue_from=str(bare), added_tokens=added)
    assert again.outputs == found.outputs


def other_tokenizer(folder: Path, kind: str, texts: list[str]) -> Path:
    """BERT's kind (WordPiece) or T5's (Unigram), trained on a little text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trainer: Any
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("kind", "eos"), [("wordpiece", "[SEP]"), ("unigram", "</s>")])
def test_other_models_than_bpe(
    made: Recipe, stage: StageRunner, tmp_path: Path, documents: dict[str, list[str]], kind: str, eos: str
) -> None:
    folder = other_tokenizer(tmp_path / kind, kind, documents["python"])
    found = use(made, tmp_path, stage, path=str(folder), eos_token=eos)
    encoder = Encoder.open(tmp_path / "tokenizer")
    texts = documents["python"][:5]
    assert [row.tolist() for row in encoder.encode(texts)] == encoder.reference_ids(texts)
    assert (found.counts["engine"], bool(found.counts["engine_why"])) == (
        encoder.engine,
        encoder.engine == "tokenizers",
    )
    assert encoder.decode(np.array([encoder.eos_id])) == eos
    assert found.metrics["bytes_per_token"] > 1


def test_the_report_compares_and_counts(
    made: Recipe, stage: StageRunner, tmp_path: Path, documents: dict[str, list[str]]
) -> None:
    other = other_tokenizer(tmp_path / "bert", "wordpiece", documents["python"])
    folder = tmp_path / "tokenizer"
    plain = use(made, tmp_path, stage, vocab_size=700, sample_bytes=200_000)
    shutil.rmtree(folder)
    found = use(made, tmp_path, stage, vocab_size=700, sample_bytes=200_000, compare=[str(other)])
    assert found.fingerprint == plain.fingerprint  # a comparison makes nothing stale
    assert (
        sum(found.counts["sample"]["python"].values()) + sum(found.counts["sample"]["chinese"].values())
        == (found.counts["sample_bytes"])
    )
    assert set(found.counts["sample"]["chinese"]) == {"zh"}
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    mine, theirs = report["held_out_bytes_per_token"]
    assert mine["tokenizer"] == "this one" and theirs["tokenizer"] == str(other)
    assert mine["bytes_per_token"] == found.counts["bytes_per_token"]
    assert set(mine["bytes_per_token"]) == set(theirs["bytes_per_token"]) == {
        "all", "source python", "source chinese", "language code", "language zh",
    }  # fmt: skip
    use_of = report["use"]
    encoder = Encoder.open(folder)
    uses = np.bincount(np.concatenate([row for texts in documents.values() for row in encoder.encode(texts)]))
    assert use_of["tokens"] == uses.sum() and use_of["unused"] == 700 - np.count_nonzero(uses)
    rarest = use_of["rarest"]
    assert all(uses[one["id"]] == one["uses"] > 0 for one in rarest)
    assert rarest[0]["uses"] == uses[uses > 0].min() and len(rarest) == 20
    assert {"<|endoftext|>", "<|pad|>"} <= {one["text"] for one in use_of["unused_first"]}


def test_settings_that_contradict() -> None:
    for values, message in (
        ({"path": "a", "continue_from": "b"}, "both set"),
        ({"eos_token": "<a>"}, "one that is trained has its own"),
    ):
        with pytest.raises((ValueError, RecipeError), match=message):
            TokenizerSettings.model_validate(values)

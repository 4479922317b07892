"""More pretraining: text of any form to the base's own tokens, held out by hash, every token learnt once an epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import write_bert, write_llama, write_text

from pipeline.cluster.ranks import ALONE
from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.tokens.data import TokenData
from pipeline.tokens.encode import Encoder
from pipeline.tokens.token_tars import documents
from pipeline.train.base_model import load_base, open_tokenizer
from pipeline.train.continuation import ContinueTask
from pipeline.train.continuation_tokens import prepare

TEXTS = [f"def number_{n}(a, b): return the sum of {n} and {n * 7} as the user asks." for n in range(60)]


def settings(**values: object) -> FinetuneTask:
    return FinetuneTask.model_validate(
        {"task": "continue", "seq_len": 32, "global_batch": 4, "micro_batch": 2, "epochs": 1, **values}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("base"))


def rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def held(folder: Path, part: str, base: Path) -> list[str]:
    """The documents of a part, decoded."""
    encoder, data = Encoder.open(base, fast=False), TokenData.open(folder)
    shards = [shard for shard in data.index.shards() if shard.file.startswith(part)]
    found = [ids for shard in shards for ids in documents(folder, shard, data.index.dtype)]
    assert all(ids[-1] == encoder.eos_id for ids in found)
    return [encoder.decode(ids[:-1]) for ids in found]


def test_rows_are_held_out_by_hash_alone(tmp_path: Path, base: Path) -> None:
    task = settings(data="jsonl", columns={"text": "body"}, train_files=rows(tmp_path / "a.jsonl", TEXTS))
    prepare(task, "mine", tmp_path / "text", tmp_path / "a", base)
    train, validation = held(tmp_path / "a", "train", base), held(tmp_path / "a", "validation", base)
    assert sorted(train + validation) == sorted(TEXTS) and 1 <= len(validation) < 20
    again = task.model_copy(update={"train_files": rows(tmp_path / "b.jsonl", TEXTS[::-1] + validation)})
    prepare(again, "mine", tmp_path / "text", tmp_path / "b", base)
    assert not set(held(tmp_path / "b", "train", base)) & set(validation)


def test_a_data_set_gives_the_same_tokens(tmp_path: Path, base: Path) -> None:
    from datasets import Dataset, DatasetDict

    made = DatasetDict({"train": Dataset.from_dict({"body": TEXTS}), "test": Dataset.from_dict({"body": TEXTS[:5]})})
    made.save_to_disk(tmp_path / "set")
    shared = {"columns": {"text": "body"}}
    task = settings(data="jsonl", train_files=rows(tmp_path / "a.jsonl", TEXTS), **shared)
    prepare(task, "mine", tmp_path / "text", tmp_path / "a", base)
    task = settings(data="datasets", train_files=str(tmp_path / "set"), **shared)
    prepare(task, "mine", tmp_path / "text", tmp_path / "b", base)
    for part in ("train", "validation"):
        assert held(tmp_path / "b", part, base) == held(tmp_path / "a", part, base)
    task = settings(
        data="datasets", train_files=str(tmp_path / "set"), validation_files=f"{tmp_path}/set#test", **shared
    )
    prepare(task, "mine", tmp_path / "text", tmp_path / "c", base)
    assert held(tmp_path / "c", "validation", base) == TEXTS[:5]
    assert held(tmp_path / "c", "train", base) == TEXTS[5:]
    task = settings(data="datasets", train_files=f"{tmp_path}/set#none", **shared)
    with pytest.raises(DataError, match=r"train_files: data set .*, split none: cannot be read"):
        prepare(task, "mine", tmp_path / "text", tmp_path / "d", base)


def test_the_runs_own_text_keeps_its_split(tmp_path: Path, base: Path) -> None:
    made = [Document(text, str(number), "python") for number, text in enumerate(TEXTS)]
    text = write_text(tmp_path / "text", made[:50], made[50:])
    prepare(settings(), "mine", text, tmp_path / "own", base)
    assert held(tmp_path / "own", "validation", base) == TEXTS[50:]
    prepare(settings(train_files=str(text)), "mine", tmp_path / "none", tmp_path / "other", base)
    assert (tmp_path / "own" / "index.json").read_bytes() == (tmp_path / "other" / "index.json").read_bytes()


def test_documents_that_are_held_out_are_not_learnt(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = settings(
        data="jsonl",
        columns={"text": "body"},
        train_files=rows(tmp_path / "a.jsonl", TEXTS),
        validation_files=rows(tmp_path / "b.jsonl", TEXTS[:5]),
    )
    prepare(task, "mine", tmp_path / "text", tmp_path / "tokens", base)
    assert held(tmp_path / "tokens", "train", base) == TEXTS[5:]
    assert held(tmp_path / "tokens", "validation", base) == TEXTS[:5]


def test_half_done_tokens_are_gone_on_with(tmp_path: Path, base: Path) -> None:
    """As a kill leaves them: one file is done, another half written."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        rows(tmp_path / "in" / f"{number}.jsonl", TEXTS[20 * number : 20 * number + 20])
    task = settings(data="jsonl", columns={"text": "body"}, train_files=str(tmp_path / "in"))
    prepare(task, "mine", tmp_path / "text", tmp_path / "whole", base)
    bad = tmp_path / "in" / "1.jsonl"
    good = bad.read_text()
    bad.write_text(good + '{"body": 3}\n')
    with pytest.raises(DataError, match=r"1\.jsonl:21: key 'body' must hold a text"):
        prepare(task, "mine", tmp_path / "text", tmp_path / "cut", base)
    assert [path.name for path in (tmp_path / "cut" / "tasks").iterdir()] == ["00000.json"]
    (tmp_path / "cut" / "train" / "left.tmp").write_bytes(b"half")
    bad.write_text(good)
    prepare(task, "mine", tmp_path / "text", tmp_path / "cut", base)
    files = [
        sorted(p.relative_to(tmp_path / one).as_posix() for p in (tmp_path / one).rglob("*.*"))
        for one in ("cut", "whole")
    ]
    assert files[0] == files[1]
    assert all((tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files[0])


def test_every_token_is_learnt_and_the_loss_is_the_models_own(tmp_path: Path, base: Path) -> None:
    task = settings(data="jsonl", columns={"text": "body"}, train_files=rows(tmp_path / "a.jsonl", TEXTS))
    prepare(task, "mine", tmp_path / "text", tmp_path / "tokens", base)
    tokenizer = open_tokenizer(base, task, "mine")
    model = load_base(base, task, (), tokenizer, seed=1)
    made = ContinueTask("mine", task, model, TokenData.open(tmp_path / "tokens"), seed=1)
    assert made.steps == round(made.stream.windows / 4) and made.targets(0) == 4 * 32
    model.eval().requires_grad_(False)
    batch = made.batch([0, 1, -1])
    windows = torch.from_numpy(made.stream.batch(0, 2))
    logits = model(input_ids=windows[:, :-1]).logits
    expected = float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum"))
    assert float(made.loss_sum(model, batch)) == pytest.approx(expected, rel=1e-5)
    found = made.validate(model, ALONE, list)
    held_out = TokenData.open(tmp_path / "tokens")
    per_byte = held_out.tokens("validation") / held_out.bytes("validation")
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / 0.6931471805599453 * per_byte)
    shown = made.shown(tokenizer, 0)
    assert shown.learnt == [False] + [True] * 32 and shown.text.count("⟦") == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seq_len": 128, "texts": TEXTS[:3], "validation": 0.5}, "fill no window of 128"),
        ({"validation": 0.0}, "no document is held out"),
        ({"columns": {}}, "key 'text' must hold a text; the row has 'body'"),
    ],
)
def test_bad_text_gets_one_line(tmp_path: Path, base: Path, values: dict[str, object], said: str) -> None:
    files = rows(tmp_path / "a.jsonl", values.pop("texts", TEXTS))  # type: ignore[arg-type]
    task = settings(**{"data": "jsonl", "columns": {"text": "body"}, "train_files": files, **values})
    with pytest.raises(DataError, match=said):
        prepare(task, "mine", tmp_path / "text", tmp_path / "tokens", base)


def test_rows_that_are_taken_for_text_tars_are_named(tmp_path: Path, base: Path) -> None:
    files = rows(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"a\.jsonl: no text tar \(\*\.tar\); of a file of rows say so: data: jsonl"):
        prepare(settings(train_files=files), "mine", tmp_path / "text", tmp_path / "tokens", base)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="continue needs a causal model"):
        open_tokenizer(write_bert(tmp_path), settings(), "mine")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_examples": 3}, "continue reads all documents"),
        ({"packing": True}, "its documents fill their windows anyway"),
        ({"data": "docstring_summaries"}, "jsonl, csv, parquet or datasets"),
        ({"task": "sft", "data": "text_tars"}, "text_tars is for task continue"),
        ({"task": "sft", "prompt": "Translate: {source}"}, "prompt is for task seq2seq, not sft"),
        ({"class_weights": "balanced"}, "class_weights is for labels, and task continue has none"),
        ({"task": "classify", "problem": "regression", "class_weights": "balanced"}, "problem: regression has none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**values)

"""The tokenizer stage: exact, deterministic, loadable by transformers; what it refuses."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline import manifest as manifests
from pipeline.corpus.text_tars import text_tars
from pipeline.errors import DataError, PipelineError
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe, TokenizerSettings
from pipeline.tokens.encode import Encoder
from pipeline.tokens.sample import sample_documents
from pipeline.tokens.text_sizes import text_bytes
from pipeline.tokens.train_tokenizer import LONGEST_RUN, cut_long_runs, train

StageRunner = Callable[[Recipe, str], Manifest]
CHAT = [
    {"role": "user", "content": "道 <b>"},
    {"role": "assistant", "content": "yes\n"},
    {"role": "user", "content": "?"},
]


def test_what_the_stage_reports(made: Recipe) -> None:
    found = manifests.load(made.workdir / "tokenizer")
    assert found.counts["vocab_size"] == 700
    assert found.counts["engine"] == "gigatoken"
    assert found.counts["held_out"]["lossy"] == 0 and found.counts["held_out"]["documents"] == 8
    assert 0 < found.counts["sample_bytes"] <= 200_000
    assert set(found.counts["bytes_per_token"]) == {
        "all",
        "source python",
        "source chinese",
        "language code",
        "language zh",
    }
    assert 1 < found.metrics["bytes_per_token.python"] < 4
    assert found.metrics["bytes_per_token.chinese"] == pytest.approx(
        found.counts["bytes_per_token"]["source chinese"], abs=1e-4
    )


def test_transformers_loads_it(made: Recipe) -> None:
    loaded = AutoTokenizer.from_pretrained(made.workdir / "tokenizer")
    assert len(loaded) == 700
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (0, 0, 1)
    assert loaded.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [2, 3]
    assert loaded.decode(loaded("naïve 🙂 道\x00 x")["input_ids"]) == "naïve 🙂 道\x00 x"
    assert loaded.decode([0, 1, 2, 3], skip_special_tokens=True) == ""


def test_the_chat_template_marks_what_the_assistant_says(made: Recipe) -> None:
    loaded = AutoTokenizer.from_pretrained(made.workdir / "tokenizer")
    assert loaded.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n道 <b><|im_end|>\n<|im_start|>assistant\nyes\n<|im_end|>\n"
        "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = loaded.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert loaded.decode(said) == "yes\n<|im_end|>"


@pytest.mark.parametrize("pretokenizer", ["gpt2", "llama3", "qwen2"])
def test_gigatoken_knows_each_pre_tokenizer(
    made: Recipe, pretokenizer: str, tmp_path: Path, documents: dict[str, list[str]]
) -> None:
    settings = TokenizerSettings(vocab_size=400, pretokenizer=pretokenizer, sample_bytes=60_000)  # type: ignore[arg-type]
    train(text_bytes(made.workdir / "text", "train"), settings, tmp_path)
    encoder = Encoder.open(tmp_path)
    assert (encoder.engine, encoder.vocab_size) == ("gigatoken", 400)
    texts = [*documents["chinese"], *documents["python"], "1234567 don't  \n\n DON'T ٣٤٥"]
    assert [row.tolist() for row in encoder.encode(texts)] == encoder.reference_ids(texts)


def test_the_same_bytes_in_another_process(made: Recipe, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from pipeline.recipe import TokenizerSettings
from pipeline.tokens.text_sizes import text_bytes
from pipeline.tokens.train_tokenizer import train
settings = TokenizerSettings(vocab_size=700, sample_bytes=200_000)
train(text_bytes(Path(sys.argv[1]), "train"), settings, Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", program, str(made.workdir / "text"), str(tmp_path)]
    subprocess.run(command, check=True, env={"PATH": "", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (made.workdir / "tokenizer" / name).read_bytes()


def test_more_words_than_the_text_supports(made: Recipe, tmp_path: Path) -> None:
    tars = text_bytes(made.workdir / "text", "train")
    with pytest.raises(DataError, match=r"vocab_size is 200,000, but the sample of .* supports at most") as caught:
        train(tars, TokenizerSettings(vocab_size=200_000), tmp_path)
    most = int(str(caught.value).rpartition("vocab_size=")[2].split()[0])
    train(tars, TokenizerSettings(vocab_size=most), tmp_path)  # what it advises works
    assert Encoder.open(tmp_path).vocab_size == most


def test_everything_held_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none is left to train a tokenizer on; lower corpus\.validation"):
        train({}, TokenizerSettings(vocab_size=300), tmp_path)


def test_nothing_held_out(
    text_stage: Callable[..., Manifest], recipe_in: Callable[..., Recipe], stage: StageRunner, tmp_path: Path
) -> None:
    text_stage(tmp_path, {"python": ["def f(): pass"] * 9}, {}, 10_000)
    with pytest.raises(DataError, match=r"no held-out text to check the tokenizer on; raise corpus.validation"):
        stage(recipe_in(tmp_path), "tokenizer")


# --- a given tokenizer ---------------------------------------------------------------------------------------------


@pytest.fixture
def given(made: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    shutil.copytree(made.workdir / "tokenizer", folder)
    (folder / "code.py").write_text("raise SystemExit('code of a model directory was run')")
    return folder


def use(made: Recipe, given: Path, stage: StageRunner) -> Manifest:
    (given.parent / "text").symlink_to(made.workdir / "text")
    recipe = Recipe.model_validate({"workdir": given.parent, "tokenizer": {"path": str(given)}})
    return stage(recipe, "tokenizer")


def test_a_given_tokenizer_is_taken_as_it_is(made: Recipe, given: Path, stage: StageRunner) -> None:
    found = use(made, given, stage)
    assert [output.path for output in found.outputs] == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for output in found.outputs:
        assert (given.parent / "tokenizer" / output.path).read_bytes() == (given / output.path).read_bytes()
    assert found.counts["vocab_size"] == 700


def test_a_given_tokenizer_that_normalises_is_told(
    made: Recipe, given: Path, stage: StageRunner, caplog: pytest.LogCaptureFixture
) -> None:
    value = json.loads((given / "tokenizer.json").read_text(encoding="utf-8"))
    value["normalizer"] = {"type": "Lowercase"}
    (given / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        found = use(made, given, stage)
    assert found.counts["held_out"]["lossy"] > 0
    assert "the given tokenizer changes" in caplog.text


def test_a_class_that_gives_other_ids_is_refused(made: Recipe, given: Path, stage: StageRunner) -> None:
    """transformers builds some classes anew from the vocabulary, with a pre-tokenizer of their own."""
    config = json.loads((given / "tokenizer_config.json").read_text(encoding="utf-8"))
    (given / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    value = json.loads((given / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["merges"] = value["model"]["merges"][:200]
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w"}
    (given / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(DataError, match=r"give other ids for document .*correct tokenizer_class"):
        use(made, given, stage)


def test_a_given_folder_without_tokenizer_json(made: Recipe, given: Path, stage: StageRunner) -> None:
    (given / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"given/tokenizer.json: no such file; a tokenizer is a folder with"):
        use(made, given, stage)


def test_a_trained_tokenizer_that_loses_text_is_a_fault(made: Recipe, given: Path, stage: StageRunner) -> None:
    from pipeline.tokens.tokenizer_check import check

    value = json.loads((given / "tokenizer.json").read_text(encoding="utf-8"))
    value["normalizer"] = {"type": "Lowercase"}
    (given / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(PipelineError, match="does not give back document python/0") as caught:
        check(Encoder.open(given), text_tars(made.workdir / "text", "validation")[::-1], given, exact=True)
    assert caught.value.status == 1


# --- the sample ----------------------------------------------------------------------------------------------------


def test_the_sample_is_bounded_even_and_stratified(text_stage: Callable[..., Manifest], tmp_path: Path) -> None:
    texts = [f"{number:05d} " + "x" * 194 for number in range(4000)]
    text_stage(tmp_path, {"big": texts, "small": texts[::10]}, {}, 40_000)
    sizes = text_bytes(tmp_path / "text", "train")
    assert sum(sizes.values()) == pytest.approx(200 * 4400)
    for budget in (10_000, 100_000, 500_000):
        taken = list(sample_documents(sizes, budget))
        assert [document.id for document in taken] == [document.id for document in sample_documents(sizes, budget)]
        total = sum(len(document.text) for document in taken)
        assert 0.7 * budget < total <= budget
        big, small = ([int(one.text[:5]) for one in taken if one.source == source] for source in ("big", "small"))
        assert 8 <= len(big) / len(small) <= 12
        assert min(big) < 800 and max(big) > (2000 if budget == 10_000 else 3900)  # few tars of a large corpus are read
    assert len(list(sample_documents(sizes, 10**9))) == 4400


def test_long_runs_are_cut_and_words_are_not() -> None:
    for text in ("plain words, and 中文" * 100, "a" * LONGEST_RUN, "", "x\n" * 1000):
        assert cut_long_runs(text) == text
    for run in ("ab" * 5000, "道" * 5000, "=-" * 5000, "x" + " \t" * 5000 + "y" * 300):
        cut = cut_long_runs(run)
        assert max(map(len, re.findall(r"\w+|[^\w\s]+|[^\S\n]+", cut))) == LONGEST_RUN
        assert cut.replace("\n", "") == run

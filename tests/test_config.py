"""A recipe is read, merged and checked before any work; each error names file, line, key, value and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import find_deepspeed_config, load_recipe, save_recipe, shipped_recipes
from pipeline.errors import RecipeError
from pipeline.recipe import Source, SourceBase


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(name: str, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "name: base\nseed: 1\npretrain: {tokens: 5, seq_len: 64}\n", "base.yaml")
    mine = write(tmp_path, "base: base.yaml\nname: mine\npretrain: {tokens: 6}\n")
    recipe = load_recipe(mine, ["pretrain.seq_len=32", "workdir=/tmp/x"])
    assert (recipe.name, recipe.seed, recipe.pretrain.tokens, recipe.pretrain.seq_len) == ("mine", 1, 6, 32)
    assert recipe.workdir == Path("/tmp/x")
    assert recipe.pretrain.global_batch == 256


def test_workdir_follows_the_name_and_is_not_inherited(tmp_path: Path) -> None:
    write(tmp_path, "workdir: /data/base\n", "base.yaml")
    assert load_recipe(write(tmp_path, "base: base.yaml\nname: mine\n")).workdir == Path("runs/mine")
    assert load_recipe(write(tmp_path, "base: demo\n")).workdir != load_recipe("demo").workdir


def test_an_empty_mapping_takes_away_what_the_base_had(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "base: demo\nname: mine\nfinetune: {}\n"))
    assert recipe.finetune == {}
    assert load_recipe("demo").finetune


def test_numbers_are_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "pretrain: {tokens: 1e6}\n"), ["pretrain.optimizer.learning_rate=1e-3"])
    assert recipe.pretrain.tokens == 1_000_000
    assert recipe.pretrain.optimizer.learning_rate == 0.001


def test_yes_and_no_are_words_and_still_switch(tmp_path: Path) -> None:
    path = write(tmp_path, "pretrain: {compile: no}\ntracking: {enabled: no}\n")
    recipe = load_recipe(path, ["tracking.register_model=false"])
    assert (recipe.pretrain.compile, recipe.tracking.enabled, recipe.tracking.register_model) == ("no", False, False)


def test_a_workdir_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is a file" in refused(write(tmp_path, ""), f"workdir={tmp_path}/file/run")


def test_entries_of_a_list_are_reached_by_number(tmp_path: Path) -> None:
    path = write(tmp_path, "corpus:\n  sources:\n    - {name: a, type: text, path: x}\n")
    assert load_recipe(path, ["corpus.sources.0.path=y"]).corpus.sources[0].path == "y"  # type: ignore[union-attr]
    assert "the list has 1 entries" in refused(path, "corpus.sources.3.path=y")


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("corpuss: {}\n", (), "r.yaml:1: unknown key 'corpuss'; did you mean 'corpus'?"),
        ("seed: 1\npretrain:\n  tokenz: 5\n", (), "r.yaml:3: unknown key 'pretrain.tokenz'; did you mean 'tokens'?"),
        ("pretrain: {deepspeed: zero9}\n", (), "deepspeed: zero9 is no file and not one of"),
        ("corpus:\n  sources:\n    - {name: a, type: text, path: ''}\n", (), "r.yaml:3: corpus.sources.0.path = ''"),
        ("seed: many\n", (), "r.yaml:1: seed = 'many'"),
        ("seed: -1\n", (), "r.yaml:1: seed = -1"),
        ("pretrain: {precision: bf61}\n", (), "did you mean 'bf16'?"),
        ("model: {dim: 100, heads: 3}\n", (), "dim (100) must be a multiple of heads (3)"),
        ("pretrain: {seq_len: 4096}\n", (), "longer than model.max_seq_len"),
        ("corpus:\n  sources:\n    - {name: a, type: csv}\n", (), "r.yaml:3: corpus.sources.0"),
        ("corpus:\n  sources:\n    - {name: a, type: text}\n", (), "corpus.sources.0.path is missing"),
        (
            "corpus:\n  sources:\n    - {name: a, type: text, path: x}\n    - {name: a, type: text, path: y}\n",
            (),
            "two sources are named 'a'",
        ),
        ("seed: 1\nseed: 2\n", (), "r.yaml:2: key 'seed' is given twice"),
        ("model: &a [*a]\n", (), "r.yaml: not valid YAML: found unconstructable recursive node"),
        ("name: !!timestamp 2024-13-45\n", (), "r.yaml: not valid YAML: month must be in 1..12"),
        ("", ("model=&a [*a]",), "'model=&a [*a]': the value is not valid YAML"),
        ("", ("name=!!timestamp 2024-13-45",), "'name=!!timestamp 2024-13-45': the value is not valid YAML"),
        ("", ("name=!!bool x",), "'name=!!bool x': the value is not valid YAML"),
        ("pretrain: {gradient_clip: .inf}\n", (), "r.yaml:1: pretrain.gradient_clip = inf: Input should be a finite"),
        ("", ("pretrain.optimizer.learning_rate=.nan",), "pretrain.optimizer.learning_rate = nan: Input should be"),
        ("- a\n", (), "must be a mapping of keys to values"),
        ("a: [\n", (), "not valid YAML"),
        ("base: r.yaml\n", (), "leads back to the same file"),
        ("base: 5\n", (), "base must be the name or path of a recipe"),
        ("a: !!python/object/apply:os.system [id]\n", (), "not valid YAML"),
        ("seed: 1\n", ("seed=x",), "the command line (seed=x): seed = 'x'"),
        ("seed: 1\n", ("sede=1",), "the command line (sede=1): unknown key 'sede'; did you mean 'seed'?"),
        ("seed: 1\n", ("seed",), "'seed' is not of the form key=value"),
        ("finetune: {a: {task: sfd}}\n", (), "did you mean 'sft'?"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: tuple[str, ...], expected: str) -> None:
    assert expected in refused(write(tmp_path, text), *words)


@pytest.mark.parametrize(
    ("value", "why"), [("9" * 5000, "Exceeds the limit"), ("[" * 3000 + "]" * 3000, "recursion")], ids=["long", "deep"]
)
def test_what_cannot_be_read_is_refused_in_one_short_line(tmp_path: Path, value: str, why: str) -> None:
    told = refused(write(tmp_path, f"seed: {value}\n"))
    assert "r.yaml: not valid YAML" in told and why in told
    told = refused(write(tmp_path, ""), f"seed={value}")
    assert told.startswith(f"'seed={value[:100]}") and "…': the value is not valid YAML" in told
    assert len(told) < 300


def test_an_error_of_the_whole_recipe_names_it_once(tmp_path: Path) -> None:
    told = refused(write(tmp_path, "finetune: {manifest: {task: sft, train_files: x}}\n"))
    assert told.startswith("the recipe: finetune.manifest: evaluation/manifest.json")


@pytest.mark.parametrize("kind", get_args(get_args(Source)[0]))
def test_a_misspelt_key_is_named_in_every_type_of_source(tmp_path: Path, kind: type[SourceBase]) -> None:
    (tag,) = get_args(kind.model_fields["type"].annotation)
    path = write(tmp_path, f"corpus:\n  sources:\n    - {{name: a, type: {tag}, langage: en}}\n")
    told = refused(path)
    assert "r.yaml:3: unknown key 'corpus.sources.0.langage'; did you mean 'language'?" in told


def test_a_date_is_text(tmp_path: Path) -> None:
    path = write(tmp_path, "name: 2026-01-01\n")
    assert load_recipe(path).name == "2026-01-01"
    assert load_recipe(path, ["name=2024-13-45"]).name == "2024-13-45"


@pytest.mark.parametrize(
    "url", ["ftp://me:hidden@host/a", "simplecache::ftp://:hid@den@host", "s3://key:hidden@bucket/*"]
)
def test_a_password_in_a_recipe_is_refused_and_not_said(tmp_path: Path, url: str) -> None:
    plain = "corpus:\n  sources:\n    - {name: a, type: text, path: x}\n"
    for told in (
        refused(write(tmp_path, plain.replace("path: x", f"path: '{url}'"))),
        refused(write(tmp_path, plain), f"corpus.sources.0.path={url}"),
    ):
        assert "corpus.sources.0.path: a recipe is kept with all that is made of it, and must hold no password" in told
        assert "hid" not in told
    for good in ("ftp://host/a", "s3://bucket/a@b", "http://host:80/a:b@c", "see ftp://me:word@host", "a:b@c"):
        assert load_recipe(write(tmp_path, plain), [f"corpus.sources.0.path='{good}'"])


def test_recipes_that_are_not_there_are_named() -> None:
    assert "did you mean 'demo'?" in refused("demp")
    assert "no such file" in refused("nowhere/my.yaml")
    with pytest.raises(RecipeError, match="did you mean 'zero1'"):
        find_deepspeed_config("zero11")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_saved_recipe_reads_back_equal(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    assert load_recipe(write(tmp_path, save_recipe(recipe))) == recipe


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("recipe"), text.encode("utf-8", "replace").decode())
    try:
        load_recipe(path)
    except RecipeError as error:
        assert "\n" not in str(error)


@given(st.dictionaries(st.sampled_from(["seed", "name", "model", "corpus"]), st.integers() | st.text(max_size=5)))
def test_any_values_are_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = write(tmp_path_factory.mktemp("recipe"), yaml.safe_dump(values))
    try:
        load_recipe(path)
    except RecipeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("{task: sft}", "finetune.a.train_files is not set"),
        ("{task: sft, data: docstring_packages}", "data docstring_packages is for task classify, not sft"),
        ("{task: sft, train_files: x.jsonl, seq_len: 4096}", "finetune.a.seq_len (4096) is longer than"),
    ],
)
def test_a_task_that_could_not_be_trained_is_refused_before_any_work(tmp_path: Path, task: str, expected: str) -> None:
    assert expected in refused(write(tmp_path, f"finetune: {{a: {task}}}\n"))

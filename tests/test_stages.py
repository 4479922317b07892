"""Skip, continue, begin, set aside: what happens to a stage's folder, and why, in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from pipeline.errors import DataError, RecipeError
from pipeline.lineage import folder_of
from pipeline.manifest import BUILDING
from pipeline.recipe import Recipe
from pipeline.stages import load_stage, prepare, stages, status


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("text\n", encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        f"workdir: {tmp_path / 'run'}\ncorpus:\n  sources:\n    - {{name: a, type: text, path: '{tmp_path}/*.txt'}}\n",
        encoding="utf-8",
    )
    return path


def load(path: Path, *words: str) -> Recipe:
    return load_recipe(str(path), words)


def finish(recipe: Recipe, name: str) -> None:
    found = status(recipe, name)
    prepare(recipe, found)
    (found.work.folder / "out").write_bytes(b"x")
    found.work.finish([found.work.folder / "out"])


def test_a_stage_is_new_then_half_done_then_done(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    assert status(recipe, "shard").state == "new"
    prepare(recipe, status(recipe, "shard"))
    assert status(recipe, "shard").state == "continue"
    assert prepare(recipe, status(recipe, "shard")) == []
    finish(recipe, "shard")
    found = status(recipe, "shard")
    assert (found.state, found.manifest is not None) == ("done", True)
    assert "from equal inputs" in found.why


def test_a_changed_setting_is_named_and_what_was_made_is_kept(recipe_file: Path) -> None:
    finish(load(recipe_file), "shard")
    changed = load(recipe_file, "corpus.rules.min_words=3")
    found = status(changed, "shard")
    assert (found.state, found.why) == ("changed", "rules.min_words was 20, is 3")
    (told,) = prepare(changed, found)
    assert "previous/shard-1" in told
    assert (changed.workdir / "previous" / "shard-1" / "out").read_bytes() == b"x"
    assert not (changed.workdir / "text" / "out").exists()
    finish(changed, "shard")
    prepare(load(recipe_file), status(load(recipe_file), "shard"))
    assert (changed.workdir / "previous" / "shard-2").is_dir()
    shutil.rmtree(changed.workdir / "text")
    (changed.workdir / "previous" / "shard-1").rename(changed.workdir / "text")  # as the line says
    assert status(load(recipe_file), "shard").state == "done"


def test_an_attempt_that_made_nothing_is_not_kept(recipe_file: Path) -> None:
    prepare(load(recipe_file), status(load(recipe_file), "shard"))
    (load(recipe_file).workdir / "text" / "parts").mkdir()
    changed = load(recipe_file, "corpus.rules.min_words=3")
    assert prepare(changed, status(changed, "shard")) == []
    assert status(changed, "shard").state == "continue"
    assert not (changed.workdir / "previous").exists()


def test_a_changed_source_is_named(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    finish(recipe, "shard")
    (recipe_file.parent / "b.txt").write_text("more\n", encoding="utf-8")
    assert status(recipe, "shard").why == "source:a changed"


def test_without_sources_nothing_is_set_aside(recipe_file: Path) -> None:
    finish(load(recipe_file), "shard")
    with pytest.raises(DataError, match=r"corpus\.sources is empty"):
        status(load(recipe_file, "corpus.sources=[]"), "shard")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\x00"])
def test_a_damaged_note_of_half_done_work_is_named(recipe_file: Path, content: str) -> None:
    found = status(load(recipe_file), "shard")
    found.work.folder.mkdir(parents=True)
    (found.work.folder / BUILDING).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{BUILDING}: damaged .* delete .*/text and run stage shard again"):
        status(load(recipe_file), "shard")


def test_half_done_work_of_another_recipe_is_set_aside(recipe_file: Path) -> None:
    prepare(load(recipe_file), status(load(recipe_file), "shard"))
    changed = load(recipe_file, "corpus.normalize=NFKC")
    assert status(changed, "shard").state == "changed"
    prepare(changed, status(changed, "shard"))
    building = json.loads((changed.workdir / "text" / BUILDING).read_text(encoding="utf-8"))
    assert building["settings"]["normalize"] == "NFKC"


def test_settings_without_effect_change_nothing(recipe_file: Path) -> None:
    finish(load(recipe_file), "shard")
    assert status(load(recipe_file, "corpus.workers=7"), "shard").state == "done"


def test_a_setting_is_in_the_key_of_the_stages_that_read_it_and_of_no_other() -> None:
    def changed(*words: str) -> list[str]:
        before, after = load_recipe("demo"), load_recipe("demo", words)
        pairs = zip(stages(before).values(), stages(after).values(), strict=True)
        return [old.name for old, new in pairs if old.settings(before) != new.settings(after)]

    assert changed("corpus.sources.0.weight=2") == ["pretrain"]
    assert changed("seed=7") == ["pretrain", "finetune.summarize", "finetune.package", "evaluate"]
    assert changed("pretrain.micro_batch=1", "finetune.package.micro_batch=1") == []
    assert changed("corpus.sources.0.max_bytes=5") == ["shard"]
    assert changed("evaluate.batch=1", "tracking.enabled=false") == []


def test_tracking_finds_every_stage_where_it_lies() -> None:
    recipe = load_recipe("demo")
    for name, stage in stages(recipe).items():
        assert folder_of(recipe, name) == recipe.workdir / stage.folder


def test_what_is_downstream_follows_what_was_made(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    with pytest.raises(DataError, match="run `pipeline shard` first"):
        status(recipe, "tokenizer")
    finish(recipe, "shard")
    finish(recipe, "tokenizer")
    assert status(recipe, "tokenizer").state == "done"
    changed = load(recipe_file, "corpus.validation=0.5")
    finish(changed, "shard")
    assert status(changed, "tokenizer").why == "shard changed"


def test_a_damaged_output_is_refused(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    finish(recipe, "shard")
    (recipe.workdir / "text" / "out").write_bytes(b"xx")
    with pytest.raises(DataError, match="was changed after stage shard made it"):
        status(recipe, "shard")


def test_every_stage_of_the_demo_can_be_loaded() -> None:
    recipe = load_recipe("demo")
    names = list(stages(recipe))
    assert names[0] == "shard"
    assert names[-1] == "evaluate"
    assert {f"finetune.{task}" for task in recipe.finetune} <= set(names)
    for stage in stages(recipe).values():
        assert callable(load_stage(stage))
        assert set(stage.needs) <= set(names[: names.index(stage.name)])


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"finetune\.nothing: not a stage"):
        status(load_recipe("demo"), "finetune.nothing")

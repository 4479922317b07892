"""Skip, continue, begin, set aside: what happens to a stage's folder, and why, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from pipeline.dry_run import dry_run_lines
from pipeline.errors import DataError, RecipeError
from pipeline.lineage import folder_of
from pipeline.manifest import BUILDING, MANIFEST
from pipeline.recipe import Recipe
from pipeline.spool import Spool, spools
from pipeline.stage_state import _differences, prepare, status, take_back
from pipeline.stages import load_stage, stages


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


def test_a_changed_source_is_named_without_its_password(recipe_file: Path) -> None:
    first = [{"name": "web", "type": "text", "path": f"s3://key:hidden@{'x' * 300}/a"}, {"name": "b", "type": "text"}]
    second = [first[0] | {"path": "s3://key:hidden@y/b"}, first[1] | {"type": "mail"}]
    told = _differences({"sources": first}, {}, {"sources": second}, {})
    assert (
        "sources.web.path was 's3://…@xxx" in told and "is 's3://…@y/b', sources.b.type was 'text', is 'mail'" in told
    )
    assert "hidden" not in told and len(told) < 400
    told = _differences({"sources": first}, {}, {"sources": first[::-1]}, {})
    assert told == "sources.(order) was ['web', 'b'], is ['b', 'web']"


def test_with_the_earlier_settings_the_earlier_work_and_its_numbers_are_back(recipe_file: Path) -> None:
    first, changed = load(recipe_file), load(recipe_file, "corpus.rules.min_words=3")
    logs = first.workdir / "logs"
    assert take_back(first, status(first, "shard")) == []
    for recipe, loss in ((first, 1.0), (changed, 2.0)):
        Spool(logs, "shard").begin(status(recipe, "shard").work.key)
        Spool(logs, "shard").numbers({"loss": loss}, 1)
        assert take_back(recipe, status(recipe, "shard")) == []
        finish(recipe, "shard")
    for recipe, loss in ((first, 1.0), (changed, 2.0), (first, 1.0)):
        assert any("shard                take back" in line for line in dry_run_lines(recipe, ("shard",)))
        told = take_back(recipe, status(recipe, "shard"))
        assert "what was made before is kept in" in told[0] and "are back" in told[1]
        assert status(recipe, "shard").state == "done"
        assert [line["metrics"] for line, _ in Spool(logs, "shard").metrics.read()] == [{"loss": loss}]
    assert len(list((first.workdir / "previous").iterdir())) == 1
    assert len(spools(logs)) == 2


def test_half_done_work_is_taken_back_too(recipe_file: Path) -> None:
    first, changed = load(recipe_file), load(recipe_file, "corpus.rules.min_words=3")
    prepare(first, status(first, "shard"))
    (first.workdir / "text" / "part").write_bytes(b"half")
    finish(changed, "shard")
    assert take_back(first, status(first, "shard"))
    assert status(first, "shard").state == "continue"
    assert (first.workdir / "text" / "part").read_bytes() == b"half"


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


@pytest.mark.parametrize("meanwhile", ["finished", "moved away"])
def test_a_stage_that_another_command_finishes_or_moves_while_we_look(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Just when this one has seen that there is no manifest."""
    recipe = load(recipe_file)
    found = status(recipe, "shard")
    prepare(recipe, found)
    folder, is_file = found.work.folder, Path.is_file

    def seen(path: Path) -> bool:
        answer = is_file(path)
        if path == folder / MANIFEST and not answer and folder.is_dir():
            monkeypatch.undo()
            found.work.finish([]) if meanwhile == "finished" else folder.rename(folder.parent / "away")
        return answer

    monkeypatch.setattr(Path, "is_file", seen)
    assert status(recipe, "shard").state == "continue"  # as it was a moment ago
    assert status(recipe, "shard").state == ("done" if meanwhile == "finished" else "new")


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

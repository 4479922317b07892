"""Pretraining in phases, with masks between documents, and with shards that turn out bad on the way."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.errors import DataError, RecipeError, Stopped
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model
from pipeline.recipe import ModelSettings, Recipe
from pipeline.stage_state import prepare, status
from pipeline.tokens.data import TokenData
from pipeline.tokens.token_tars import Index, ShardWriter, write_index
from pipeline.tracking import Tracker
from pipeline.train import pretrain
from pipeline.train.audit import events
from pipeline.train.phases import plan_phases
from pipeline.train.pretrain import PretrainTask

EOS, WORDS = 0, 4000
SIZES = {"a": 2000, "b": 900}


def write_tokens(folder: Path) -> None:
    """Two sources whose tokens tell where they stand, in shards of 300, in documents of 12 with their end-of-text."""
    parts: dict[str, dict[str, tuple[Any, ...]]] = {"train": {}, "validation": {}}
    for part, name, count, first in (
        ("train", "a", SIZES["a"], 1),
        ("train", "b", SIZES["b"], 2500),
        ("validation", "a", 100, 3500),
    ):
        with ShardWriter(folder, f"{part}/{name}-00000", np.dtype("uint16"), 300, 300) as writer:
            for start in range(0, count, 12):
                ids = np.arange(first + start, first + min(start + 12, count))
                ids[-1] = EOS
                writer.add(ids, np.array([len(ids)]), 3 * len(ids))
        parts[part][name] = tuple(writer.shards)
    write_index(folder, Index(WORDS, EOS, parts))


def recipe_in(workdir: Path, **values: object) -> Recipe:
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "tokens").exists():
        write_tokens(workdir / "tokens")
    return Recipe.model_validate(
        {
            "workdir": workdir,
            "model": {"dim": 16, "layers": 1, "heads": 2, "max_seq_len": 32},
            "pretrain": {
                "tokens": 1024,
                "seq_len": 16,
                "global_batch": 4,
                "micro_batch": 4,
                "precision": "fp32",
                "checkpoint_steps": 2,
                "self_test": False,
                "validation_windows": 2,
                **values,
            },
        }
    )


def run(recipe: Recipe) -> Manifest:
    folder = recipe.workdir / "checkpoints"
    folder.mkdir(exist_ok=True)
    return pretrain.run(recipe, Work("pretrain", folder, "key", {}, {}), Tracker())


def kinds(recipe: Recipe) -> list[str]:
    return [event["kind"] for event in events(recipe.workdir / "checkpoints")]


# --- phases --------------------------------------------------------------------------------------------------------

PHASES = (
    {"from_tokens": 300, "global_batch": 6},
    {"from_tokens": 600, "weights": {"b": 3.0}},
    {"from_tokens": 800, "seq_len": 32, "global_batch": 2},
)

SHORT = ({"from_tokens": 100, "global_batch": 6}, {"from_tokens": 250, "seq_len": 32, "global_batch": 2})


def tokens_of(recipe: Recipe) -> list[list[int]]:
    """Every window of the run, in its order."""
    data = TokenData.open(recipe.workdir / "tokens")
    plan = plan_phases(recipe, data)
    found: list[list[int]] = []
    for number, phase in enumerate(plan):
        task = PretrainTask(recipe, data, plan, number)
        for step in range(phase.first, phase.end):
            batch = task.batch(range(step * task.sequences, (step + 1) * task.sequences))
            found += batch["inputs"].tolist()
    return found


def test_the_plan_of_a_run_in_phases(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, phases=PHASES)
    plan = plan_phases(recipe, TokenData.open(tmp_path / "tokens"))
    assert [(each.first, each.end, each.tokens, each.global_batch, each.seq_len) for each in plan] == [
        (0, 5, 0, 4, 16),  # 5 steps of 64: the first step boundary at or after 300
        (5, 8, 320, 6, 16),
        (8, 10, 608, 6, 16),
        (10, 14, 800, 2, 32),
    ]
    assert plan[-1].tokens_at(14) == 1056
    assert len({each.fingerprint for each in plan}) == 4


def test_sources_go_on_where_they_were(tmp_path: Path) -> None:
    """Until the length changes each source gives the windows that one phase would give, in that order."""
    phased = recipe_in(tmp_path, phases=PHASES[:2], tokens=2048)
    plain = recipe_in(tmp_path, tokens=6144)

    def by_source(windows: list[list[int]]) -> tuple[list[list[int]], ...]:
        return tuple([w for w in windows if (max(w) >= 2500) == second] for second in (False, True))

    found, wanted = by_source(tokens_of(phased)), by_source(tokens_of(plain))
    for mine, whole in zip(found, wanted, strict=True):
        assert len(mine) > 20 and mine == whole[: len(mine)]
    assert len(found[1]) > 1.5 * len(found[0]) * SIZES["b"] / SIZES["a"]  # the mix has changed


def test_a_run_in_phases_stopped_anywhere_gives_the_same(tmp_path: Path) -> None:
    whole = run(recipe_in(tmp_path / "whole", phases=SHORT, tokens=400))
    assert whole.counts["steps"] == 6 and whole.counts["tokens"] == 448
    assert kinds(recipe_in(tmp_path / "whole")).count("phase") == 2
    losses = json.loads((tmp_path / "whole" / "checkpoints" / "final" / "losses.json").read_text())["losses"]
    assert len(losses) == 6
    for number in itertools.count():
        assert number < 20
        try:  # stops after each step
            made = run(recipe_in(tmp_path / "stopped", phases=SHORT, tokens=400, max_hours=1e-9))
            break
        except Stopped:
            continue
    assert made.outputs[1:] == whole.outputs[1:]
    assert number == 3  # the last step of a phase goes on into the next


def test_a_phase_is_added_to_a_half_done_run(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="after step 1 of 7"):
        run(recipe_in(tmp_path / "run", tokens=400, max_hours=1e-9))
    added = recipe_in(tmp_path / "run", phases=SHORT, tokens=400)
    assert run(added).counts["tokens"] == 448
    assert kinds(added).count("phase") == 2
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "final")
    with pytest.raises(DataError, match=r"made from other data or settings \(.*quotas was .*, is"):
        run(recipe_in(tmp_path / "run", phases=(*SHORT[:1], SHORT[1] | {"weights": {"b": 2.0}}), tokens=400))


def test_the_driver_goes_on_into_an_added_phase(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, tokens_from=str(tmp_path / "tokens"))
    stage = stages.stages(recipe)["pretrain"]
    assert stage.needs == ("tokenizer",)
    (tmp_path / "tokenizer").mkdir()
    Work("tokenizer", tmp_path / "tokenizer", "key", {}, {}).finish([])
    prepare(recipe, status(recipe, "pretrain"))
    (tmp_path / "checkpoints" / "something").write_text("half done")
    more = recipe_in(tmp_path, tokens_from=str(tmp_path / "tokens"), phases=PHASES[:1])
    found = status(more, "pretrain")
    assert (found.state, found.why) == ("continue", "half-done work is here, and the recipe adds a phase to it")
    prepare(more, found)
    assert status(more, "pretrain").why == "half-done work with equal inputs is here"
    other = recipe_in(tmp_path, tokens_from=str(tmp_path / "tokens"), phases=PHASES[1:2])
    assert status(other, "pretrain").state == "changed"
    with pytest.raises(RecipeError, match=r"weights of c: no such source; there are a, b"):
        run(recipe_in(tmp_path, phases=[{"from_tokens": 300, "weights": {"c": 1.0}}]))
    with pytest.raises(ValueError, match="from_tokens must rise"):
        recipe_in(tmp_path, phases=PHASES[::-1])


def test_phases_are_checked_with_the_recipe(tmp_path: Path) -> None:
    """Before text and tokens are made, which may take days."""
    sources = [{"name": name, "type": "text", "path": "x"} for name in "ab"]
    for phase, problem in (
        ({"from_tokens": 300, "weights": {"c": 1.0}}, r"weights of c: no such source; there are a, b"),
        ({"from_tokens": 300, "seq_len": 100_000}, r"pretrain.phases: seq_len \(100000\) is longer than"),
    ):
        with pytest.raises(ValueError, match=problem):
            Recipe.model_validate(
                {"workdir": tmp_path, "corpus": {"sources": sources}, "pretrain": {"tokens": 1024, "phases": [phase]}}
            )


# --- documents -----------------------------------------------------------------------------------------------------


def test_a_masked_window_is_its_documents_one_by_one() -> None:
    model = build_model(ModelSettings(dim=32, layers=2, heads=4, kv_heads=2, max_seq_len=32), 50, 3)
    draw = torch.Generator().manual_seed(0)  # some draws' losses with and without the mask lie within 1e-4 by chance
    tokens = torch.randint(1, 50, (2, 20), generator=draw)
    tokens[0, [0, 7, 12]] = EOS
    tokens[1, [3, 4, 19]] = EOS
    targets = torch.randint(0, 50, (2, 20), generator=draw)
    documents = (tokens == EOS).cumsum(1)
    joined = model(tokens, targets, documents)
    single = torch.zeros(())
    for row in range(2):
        for number in documents[row].unique():
            here = documents[row] == number
            single = single + model(tokens[row, here][None], targets[row, here][None])
    assert joined.item() == pytest.approx(single.item(), rel=1e-5)
    assert joined.item() != pytest.approx(model(tokens, targets).item(), rel=1e-4)
    gradients = torch.autograd.grad(joined, model.embedding.weight)[0]
    wanted = torch.autograd.grad(single, model.embedding.weight)[0]
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


def test_documents_are_told_by_their_ends(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, documents="mask", tokens=128)
    task = PretrainTask(recipe, TokenData.open(tmp_path / "tokens"))
    batch = task.batch([0, 1, -1])
    assert torch.equal(batch["documents"][:2].diff(dim=1) > 0, batch["inputs"][:2, 1:] == EOS)
    assert (batch["targets"][2] == -100).all()
    assert run(recipe).counts["steps"] == 2
    with pytest.raises(RecipeError, match="needs attention"):
        run(recipe.model_copy(update={"model": ModelSettings(architecture="lstm", dim=16, layers=1, max_seq_len=32)}))


# --- packing -------------------------------------------------------------------------------------------------------


def test_packed_documents_are_trained_on_whole(tmp_path: Path) -> None:
    """Documents of 12 in windows of 30: two each, six places empty; stopped after each step, the same is learnt."""
    values: dict[str, Any] = {"packing": "best_fit", "documents": "mask", "seq_len": 30, "tokens": 480}
    whole = run(recipe_in(tmp_path / "whole", **values))
    assert whole.counts["steps"] == 4 and 0.2 <= whole.counts["padding"] < 0.21
    recipe = recipe_in(tmp_path / "stopped", **values, max_hours=1e-9)
    for _ in range(3):
        with pytest.raises(Stopped):
            run(recipe)
    assert run(recipe).outputs == whole.outputs
    task = PretrainTask(recipe, TokenData.open(tmp_path / "whole" / "tokens"))
    for step in range(4):
        batch = task.batch(range(step * 4, step * 4 + 4))
        assert int((batch["targets"] >= 0).sum()) == task.targets(step) < task.tokens_per_step
        assert (batch["inputs"][:, 0] == EOS).all() and (batch["targets"][:, 24:] == -100).all()
    losses = json.loads((tmp_path / "whole" / "checkpoints" / "final" / "losses.json").read_text())["losses"]
    assert losses[0] == pytest.approx(np.log(WORDS), rel=0.01)  # a mean over the targets alone


# --- bad shards ----------------------------------------------------------------------------------------------------


def damaged(workdir: Path, number: int) -> str:
    path = workdir / "tokens" / "train" / f"a-00000-{number:03d}.tar"
    content = bytearray(path.read_bytes())
    content[640] ^= 1
    path.write_bytes(content)
    return f"train/{path.name}"


def test_bad_shards_are_skipped_and_it_is_told(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, bad_shards="skip", verify="always", tokens=512)
    missing = tmp_path / "tokens" / "train" / "a-00000-003.tar"
    missing.unlink()
    wrong = {damaged(tmp_path, 1), "train/a-00000-003.tar"}
    with pytest.raises(Stopped):
        run(recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"max_hours": 1e-9})}))
    made = run(recipe)
    told: list[Mapping[str, Any]] = [
        event for event in events(tmp_path / "checkpoints") if event["kind"] == "bad_shard"
    ]
    assert {event["file"] for event in told} == wrong and len(told) == 2
    checkpoint = next((tmp_path / "checkpoints").glob("step-*/checkpoint.json"))
    assert set(json.loads(checkpoint.read_text())["state"]["left_out"]) == wrong
    assert made.counts["steps"] == 8


def test_the_targets_of_a_step_are_those_that_are_left(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, bad_shards="skip")
    task = PretrainTask(recipe, TokenData.open(tmp_path / "tokens"))
    task.leave_out({"train/a-00000-001.tar", "train/b-00000-000.tar"})
    fewer = 0
    for step in range(8):
        batch = task.batch(range(step * 4, step * 4 + 4))
        assert int((batch["targets"] >= 0).sum()) == task.targets(step) or task.targets(step) == 1
        fewer += task.targets(step) < task.tokens_per_step
    assert fewer >= 3


def test_a_bad_shard_ends_a_run_that_does_not_skip(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, verify="always")
    damaged(tmp_path, 0)
    with pytest.raises(DataError, match=r"a-00000-000.tar: damaged: its checksum"):
        run(recipe)

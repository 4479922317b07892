"""The mix of sources: weights, temperature, caps, and the plan that is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import Shard, prose, write_jsonl

from pipeline.corpus.mix import mix_plan, mix_weights, plan_by_tokens
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.stages import stages

SIZES = {"a": 100, "b": 300, "c": 600}


def recipe(temperature: float = 1.0, tokens: int = 1000, **sources: dict[str, Any]) -> Recipe:
    chosen = [{"name": name, "type": "text", "path": "x"} | sources.get(name, {}) for name in ("a", "b", "c")]
    corpus = {"sources": chosen, "mix": {"temperature": temperature}}
    return Recipe.model_validate({"corpus": corpus, "pretrain": {"tokens": tokens}})


def shares(made: Recipe, sizes: dict[str, int] = SIZES) -> dict[str, float]:
    weights = mix_weights(made, sizes)
    plan = mix_plan({name: {"tokens": size} for name, size in sizes.items()}, weights, "tokens")
    return {name: row["share"] for name, row in plan.items()}


def test_weights_alone_stay_as_they_are() -> None:
    assert mix_weights(recipe(a={"weight": 2.5}), SIZES) == {"a": 2.5, "b": 1.0, "c": 1.0}
    assert mix_weights(recipe(), {"a": 5, "b": 0}) == {"a": 1.0}


def test_temperature_raises_small_sources() -> None:
    found = shares(recipe(2.0))
    roots = {name: size**0.5 for name, size in SIZES.items()}
    assert found == pytest.approx({name: root / sum(roots.values()) for name, root in roots.items()})
    assert mix_weights(recipe(2.0), SIZES)["c"] == 1.0
    assert shares(recipe(100.0, a={"weight": 2}))["a"] == pytest.approx(0.5, abs=0.01)


def test_caps_hold_and_the_others_keep_their_proportion() -> None:
    found = shares(recipe(c={"max_share": 0.2}))
    assert found == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    found = shares(recipe(c={"max_share": 0.2}, b={"max_share": 0.5}))  # the second is above once the first is held
    assert found == pytest.approx({"a": 0.3, "b": 0.5, "c": 0.2})
    assert shares(recipe(c={"max_share": 0.9})) == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})


def test_caps_that_leave_no_mix_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"max_share of a 0\.3, b 0\.3, c 0\.3 leave nothing"):
        shares(recipe(a={"max_share": 0.3}, b={"max_share": 0.3}, c={"max_share": 0.3}))
    with pytest.raises(RecipeError, match="max_share of c"):
        shares(recipe(c={"max_share": 0.5}), {"c": 7})


@given(
    st.fixed_dictionaries(dict.fromkeys("abc", st.integers(1, 10**12))),
    st.fixed_dictionaries(dict.fromkeys("abc", st.none() | st.floats(0.4, 1.0))),
    st.floats(1.0, 10.0),
)
def test_any_mix_keeps_its_caps_and_adds_up(
    sizes: dict[str, int], caps: dict[str, float | None], temperature: float
) -> None:
    made = recipe(temperature, **{name: {"max_share": cap} for name, cap in caps.items()})
    found = shares(made, sizes)
    assert sum(found.values()) == pytest.approx(1)
    assert all(cap is None or found[name] <= cap + 1e-9 for name, cap in caps.items())


def test_epochs_at_the_budget() -> None:
    sizes = {name: {"tokens": size, "documents": 1, "bytes": 4 * size} for name, size in SIZES.items()}
    plan = plan_by_tokens(recipe(tokens=2000, a={"weight": 3}), sizes)
    assert {name: row["epochs"] for name, row in plan.items()} == pytest.approx({"a": 5, "b": 5 / 3, "c": 5 / 3})
    assert sum(row["epochs"] * row["tokens"] for row in plan.values()) == pytest.approx(2000)


def test_the_mix_makes_pretraining_run_again_and_nothing_before_it() -> None:
    def settings(made: Recipe) -> dict[str, Any]:
        return {name: stage.settings(made) for name, stage in stages(made).items()}

    plain = settings(recipe())
    for other in (recipe(2.0), recipe(a={"max_share": 0.5}), recipe(a={"weight": 2})):
        changed = {name for name, value in settings(other).items() if value != plain[name]}
        assert changed == {"pretrain"}


def test_the_shard_stage_tells_the_plan(
    tmp_path: Path, shard: Shard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    caplog.set_level(logging.INFO)
    sources = [
        {"name": name, "type": "jsonl", "path": str(write_jsonl(tmp_path / name, [prose(n) for n in numbers]))}
        for name, numbers in (("first.jsonl", range(10)), ("second.jsonl", range(10, 40)))
    ]
    shard([one | {"name": one["name"].split(".")[0], "weight": 3 - n} for n, one in enumerate(sources)], validation=0)
    lines = list(
        dict.fromkeys(line for line in caplog.messages if "of what is seen" in line)
    )  # pytest may catch it twice
    assert len(lines) == 2
    assert "10 documents" in lines[0] and "weight 3" in lines[0] and "33." in lines[0]

"""The recipes that ship: all parse, all can be shown, all name a DeepSpeed config that is there."""

from __future__ import annotations

import json

import pytest

from pipeline.config import find_deepspeed_config, load_recipe, shipped_recipes
from pipeline.dry_run import dry_run_lines, vocabulary
from pipeline.model.build import parameter_count

PARAMETERS = {"demo": (1.5e6, 4e6), "125m": (1.0e8, 1.35e8), "1b": (1.0e9, 1.5e9), "7b": (6.5e9, 8e9)}


def test_the_promised_recipes_are_there() -> None:
    assert set(shipped_recipes()) >= set(PARAMETERS)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_can_be_shown_and_trained(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    for training in (recipe.pretrain, *recipe.finetune.values()):
        json.loads(find_deepspeed_config(training.deepspeed).read_text(encoding="utf-8"))
        assert training.global_batch % training.micro_batch == 0
    text = "\n".join(dry_run_lines(recipe))
    for word in ("shard", "tokenizer", "tokenize", "pretrain", "export", "evaluate", "parameters", "tokens ="):
        assert word in text
    assert f"{recipe.pretrain.tokens:,} tokens" in text


@pytest.mark.parametrize(("name", "bounds"), PARAMETERS.items())
def test_a_recipe_has_the_size_of_its_name(name: str, bounds: tuple[float, float]) -> None:
    recipe = load_recipe(name)
    low, high = bounds
    assert low < parameter_count(recipe.model, vocabulary(recipe)[0]) < high

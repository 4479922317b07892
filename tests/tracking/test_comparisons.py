"""What `pipeline evaluate --against` tells MLflow."""

from __future__ import annotations

import math

from test_tracking import client_of, runs_of

from pipeline.evaluate.compare import comparison_numbers
from pipeline.files import write_json
from pipeline.manifest import Work
from pipeline.recipe import Recipe
from pipeline.tracking import log_comparison, open_tracker

ROW = {"ours": 0.75, "theirs": 0.5, "difference": 0.25, "interval": [0.125, 0.375], "p": 0.03}


def test_difference_interval_and_p_reach_the_run_once(recipe: Recipe, shard_work: Work) -> None:
    parts = {"topic": {"examples": 6, "accuracy": ROW, "macro_f1": {**ROW, "interval": None}}}
    result = {"ours": "runs/a", "theirs": "runs/b", "parts": parts}
    path = recipe.workdir / "comparisons" / "b.json"
    write_json(path, result)
    log_comparison(recipe, path, comparison_numbers(result))  # never tracked: nothing to tell it to
    with open_tracker(recipe, shard_work):
        shard_work.finish([])
    for _ in range(2):
        log_comparison(recipe, path, comparison_numbers(result))
    run = runs_of(recipe)["pipeline"]
    told = {name: value for name, value in run.data.metrics.items() if name.startswith("against/")}
    assert told == {
        "against/b/topic/accuracy/difference": 0.25,
        "against/b/topic/accuracy/low": 0.125,
        "against/b/topic/accuracy/high": 0.375,
        "against/b/topic/accuracy/p": 0.03,
        "against/b/topic/macro_f1/difference": 0.25,
        "against/b/topic/macro_f1/p": 0.03,
    }
    assert all(map(math.isfinite, told.values()))
    history = client_of(recipe).get_metric_history(run.info.run_id, "against/b/topic/accuracy/p")
    assert len(history) == 1
    kept = client_of(recipe).list_artifacts(run.info.run_id, "comparisons")
    assert [item.path for item in kept] == ["comparisons/b.json"]

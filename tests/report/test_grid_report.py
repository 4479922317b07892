"""A grid in the report: its table, its pictures, no pictures of single combinations."""

from __future__ import annotations

from typing import Any

from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.report.build import write_report
from pipeline.spool import Spool


def row(rate: float, rank: int, accuracy: float) -> dict[str, Any]:
    name = f"learning_rate={rate:g},rank={rank}"
    return {"combination": name, "learning_rate": rate, "rank": rank, "accuracy": accuracy, "steps": 7, "seconds": 61.5}


def with_grid(finished: Recipe, rates: list[float], rows: list[dict[str, Any]]) -> Recipe:
    """The fixture's run, whose task `package` was the best of a grid."""
    task = finished.finetune["package"].model_dump() | {"lora": {}, "grid": {"learning_rate": rates, "rank": [2, 4]}}
    tasks = finished.model_dump()["finetune"] | {"package": task}
    write_json(
        finished.workdir / "finetune/package/grid.json",
        {"judged_by": "accuracy", "best": rows[0]["combination"], "combinations": rows},
    )
    return Recipe.model_validate({**finished.model_dump(), "finetune": tasks})


def test_a_table_the_best_first_and_a_picture(finished: Recipe) -> None:
    rows = [row(0.01, 4, 0.875), row(0.001, 4, 0.75), row(0.01, 2, 0.625), row(0.001, 2, 0.5)]
    recipe = with_grid(finished, [0.001, 0.01], rows)
    page = write_report(recipe).read_text(encoding="utf-8")
    order = [page.index(f"<td>{number}</td>") for number in ("0.875", "0.75", "0.625", "0.5")]
    assert order == sorted(order)
    assert "<th>learning rate</th><th>rank</th><th>accuracy</th>" in page
    svg = (recipe.workdir / "logs/plots/finetune.package.grid.svg").read_text(encoding="utf-8")
    for shown in ("package: held-out accuracy", "rank 2", "rank 4", "0.001", "learning rate"):
        assert shown in svg, shown
    assert "package@" not in page.split("Not made yet")[0]


def test_another_grid_is_another_page(finished: Recipe) -> None:
    recipe = with_grid(finished, [0.01], [row(0.01, 4, 0.75), row(0.01, 2, 0.5)])
    before = write_report(recipe).read_bytes()
    recipe = with_grid(finished, [0.01], [row(0.01, 2, 0.75), row(0.01, 4, 0.5)])
    assert write_report(recipe).read_bytes() != before


def test_all_combinations_learn_in_one_picture(finished: Recipe) -> None:
    rows = [row(0.01, 4, 0.875), row(0.001, 4, 0.75), row(0.01, 2, 0.625), row(0.001, 2, 0.5)]
    recipe = with_grid(finished, [0.001, 0.01], rows)
    for one in rows[:3]:  # of the fourth nothing was logged
        spool = Spool(recipe.workdir / "logs", f"finetune.package@{one['combination']}")
        spool.begin("key")
        for step in (3, 7):
            spool.metrics.append({"step": step, "metrics": {"validation/accuracy": one["accuracy"] * step / 7}})
    page = write_report(recipe).read_text(encoding="utf-8")
    svg = (recipe.workdir / "logs/plots/finetune.package.combinations.svg").read_text(encoding="utf-8")
    assert "package: held-out accuracy while it learns" in svg and "package: held-out accuracy while it learns" in page
    names = ["learning rate 0.01, rank 4", "learning rate 0.001, rank 4", "learning rate 0.01, rank 2"]
    assert [svg.count(f">{name}<") for name in names] == [1, 1, 1]  # a line each, the best first
    assert [svg.index(name) for name in names] == sorted(svg.index(name) for name in names)
    assert "learning rate 0.001, rank 2" not in svg

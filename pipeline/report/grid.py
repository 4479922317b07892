"""The results of a fine-tuning task's grid: pictures and a table, from `grid.json` and the combinations' logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.read import Run, read_json

TABLE = "grid.json"
SETTINGS = ("learning_rate", "epochs", "rank")
COLUMNS = (*SETTINGS, "steps", "best_step", "trainable_parameters", "seconds")

Grid = Mapping[str, Any]


def grids(run: Run) -> dict[str, Grid]:
    """Stage → its grid.json, of the tasks that have one and are done."""
    found = {
        name: read_json(run.recipe.workdir / stage.folder / TABLE)
        for name, stage in run.stages.items()
        if stage.chooses and run.manifests.get(name)
    }
    return {name: grid for name, grid in found.items() if grid}


def columns(grid: Grid) -> list[str]:
    """The columns of the table: what was tried, the number that decides, the rest."""
    known = [name for name in COLUMNS if name in grid["combinations"][0]]
    tried = [name for name in SETTINGS if name in known]
    return [*tried, grid["judged_by"], *(name for name in known if name not in tried)]


def varied(grid: Grid) -> list[str]:
    """The settings of which several values were tried."""
    rows = grid["combinations"]
    return [name for name in SETTINGS if name in rows[0] and len({row[name] for row in rows}) > 1]


def values_of(row: Mapping[str, Any], settings: Sequence[str]) -> str:
    """A combination's values, in words: `learning rate 0.001, rank 8`."""
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:g}" for name in settings)


def pictures(run: Run) -> dict[str, str]:
    """Of each grid: the held-out number over what was tried, and over the steps of every combination."""
    from pipeline.report import plots

    found: dict[str, str] = {}
    for stage, grid in grids(run).items():
        found[f"{stage}.grid"] = picture(stage, grid)
        judged, tried = grid["judged_by"], varied(grid)
        rows = {f"{stage}@{row['combination']}": row for row in grid["combinations"]}
        drawn = {values_of(row, tried): run.curves(name).get(f"validation/{judged}") for name, row in rows.items()}
        curves = {name: curve for name, curve in drawn.items() if curve}
        if len(curves) > 1:
            title = f"{stage.partition('.')[2]}: held-out {judged.replace('_', ' ')} while it learns"
            found[f"{stage}.combinations"] = plots.curves_of_many(title, judged.replace("_", " "), curves)
    return found


def picture(stage: str, grid: Grid) -> str:
    """The held-out number over the first setting of which several values were tried, a line for each combination of
    the others."""
    from pipeline.report import plots

    rows, judged, tried = grid["combinations"], grid["judged_by"], varied(grid)
    title = f"{stage.partition('.')[2]}: held-out {judged.replace('_', ' ')}"
    if not tried:
        return plots.bars(title, judged, {row["combination"]: row[judged] for row in rows})
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(values_of(row, tried[1:]), []).append((row[tried[0]], row[judged]))
    return plots.points_over(title, tried[0].replace("_", " "), judged.replace("_", " "), lines, tried[0] != "epochs")

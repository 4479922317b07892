"""The end of a grid: of the models that its combinations trained, the best one becomes the task's.

Makes, under finetune/<task>/: what the best combination made (`model/`, `adapter/`, `examples/`; linked, not copied,
where the disk can), and `grid.json`: every combination with its values, held-out number and time, the best first. The
times of two runs differ, so that file is no output by which the result is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline import manifest as manifests
from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.registered import place
from pipeline.tracking import Tracker
from pipeline.train.best import LOWER_IS_BETTER
from pipeline.train.collective import manifest_of_rank_0

TABLE = "grid.json"
Row = dict[str, Any]


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Compare the combinations of a task, print them, and take over the best. Every rank calls it; rank 0 writes.

    Raises: DataError where none has a finite number.
    """
    if not (read_ranks() or ALONE).first:
        return manifest_of_rank_0(work)
    name = work.stage.partition(".")[2]
    task = recipe.task(name)
    judged = task.best_by or "loss"
    folders = {one: recipe.workdir / "finetune" / f"{name}@{one}" for one in task.combinations()}
    made = {one: manifests.load(folder) for one, folder in folders.items()}
    values = task.grid.combinations() if task.grid else {}
    rows = ranked([_row(one, values[one], made[one], judged) for one in made], judged)
    best = rows[0]["combination"]
    if not math.isfinite(rows[0][judged]):
        raise DataError(f"{work.stage}: no combination has a finite {judged}; try lower learning rates")
    write_json(work.folder / TABLE, {"judged_by": judged, "best": best, "combinations": rows})
    for line in table_lines(rows, judged):
        log.info(f"{work.stage}: {line}")
    tracker.log_params({"best": best})
    tracker.log_artifact(work.folder / TABLE)
    work.fence.check()
    taken = {output.path: folders[best] / output.path for output in made[best].outputs}
    place(taken, {}, work.folder)
    counts = {**made[best].counts, "combinations": len(rows), "best_combination": best}
    return work.finish([work.folder / path for path in taken], counts, made[best].metrics)


def _row(name: str, values: dict[str, float], made: Manifest, judged: str) -> Row:
    """seconds: of the start that finished it, which for one that was killed is not all."""
    return {
        "combination": name,
        **values,
        judged: made.metrics[f"validation/{judged}"],
        "steps": made.counts["steps_done"],
        "best_step": made.counts["best_step"],
        "trainable_parameters": made.counts["trainable_parameters"],
        "seconds": made.seconds,
    }


def ranked(rows: Sequence[Row], judged: str) -> list[Row]:
    """The best first, the first of equals before the others; what is not finite last."""
    sign = 1.0 if judged in LOWER_IS_BETTER else -1.0
    return sorted(rows, key=lambda row: sign * row[judged] if math.isfinite(row[judged]) else math.inf)


def table_lines(rows: Sequence[Row], judged: str) -> list[str]:
    """The table to print."""
    wide = max(len(row["combination"]) for row in rows)
    return [f"{'held-out':<{wide}} {judged:>9} {'steps':>7} {'seconds':>8}"] + [
        f"{row['combination']:<{wide}} {row[judged]:>9.4f} {row['steps']:>7,} {row['seconds']:>8.1f}" for row in rows
    ]

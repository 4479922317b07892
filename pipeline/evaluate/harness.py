"""The harness stage: tasks of lm-evaluation-harness (the extra `eval-harness`) on the pretrained model.

Tasks are the harness's own, by name, or files of tasks (YAML), whose data may be local: then no network is needed. The
stage is there when the recipe names tasks, or `pipeline evaluate RECIPE --harness TASKS` does.
Makes harness/results.json: what the harness measured of each task, its versions and its settings.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError, EnvironmentFault
from pipeline.evaluate.generate import context_length
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.directory import load_causal_model
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

RESULTS = "results.json"
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")  # of what the harness returns


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Measure the recipe's tasks, and commit.

    Raises: EnvironmentFault when the harness is not installed; DataError for a task that it does not know, or whose
    data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EnvironmentFault(
            "lm-evaluation-harness is not installed; `pip install 'headwater[eval-harness]'`, or leave out --harness"
        )
    settings = recipe.evaluate.harness
    device = find_device(ALONE)
    log.info("harness: %s, on %s", ", ".join(settings.tasks), device.describe())
    folder = recipe.workdir / "model"
    model, tokenizer = load_causal_model(folder, device=str(device.torch_device))
    found = measure(model, tokenizer, recipe)
    write_json(work.folder / RESULTS, found)
    metrics = metrics_of(found["results"])
    tracker.log_metrics(metrics)
    for name, value in metrics.items():
        log.info("harness: %s %.4f", name, value)
    counts = {name: int(number["effective"]) for name, number in found["n-samples"].items()}
    return work.finish([work.folder / RESULTS], counts={"examples": counts}, metrics=metrics)


def measure(model: Any, tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    """What the harness measures of a model; see `run`."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = recipe.evaluate.harness
    files = [Path(task) for task in settings.tasks if is_file(task)]
    manager = TaskManager(include_path=sorted({str(path.parent.resolve()) for path in files}) or None)
    names = [_task_of(Path(task)) if is_file(task) else task for task in settings.tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise DataError(
            f"evaluate.harness.tasks: the harness knows no task '{unknown[0]}'; `lm-eval ls tasks` lists them, a file "
            "of your own is given by its path (*.yaml)"
        )
    wrapped = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=recipe.evaluate.batch,
        max_length=context_length(model),
        add_bos_token=False,
    )
    try:
        found = simple_evaluate(
            model=wrapped,
            tasks=names,
            task_manager=manager,
            num_fewshot=settings.fewshot,
            limit=settings.limit,
            log_samples=False,
            random_seed=recipe.seed,
            numpy_random_seed=recipe.seed,
            torch_random_seed=recipe.seed,
            fewshot_random_seed=recipe.seed,
        )
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` and the hub raise for data that are away
        first = next(iter(str(error).splitlines()), "no reason given")
        raise DataError(
            f"evaluate.harness: {', '.join(names)}: {type(error).__name__}: {first}; where there is no network, give "
            "task files whose data are local (dataset_path: json, dataset_kwargs: data_files)"
        ) from error
    return {name: _plain(found[name]) for name in KEPT if name in found}


def metrics_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of each task as flat metrics: `harness/arc_easy/acc`, `harness/arc_easy/acc_stderr`; those of a
    filter bear its name too."""
    found = {}
    for task, numbers in results.items():
        for name, value in numbers.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, (int, float)) and filtered:
                found[f"harness/{task}/{metric}" + (f" {filtered}" if filtered != "none" else "")] = float(value)
    return found


def is_file(task: str) -> bool:
    """Whether a task is given as a file, rather than by its name."""
    return task.endswith((".yaml", ".yml"))


def _task_of(path: Path) -> str:
    """The name that a file of a task gives it."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads past the harness's own tags (`!function`), which only the harness may follow."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        name = yaml.load(path.read_text(encoding="utf-8"), Loader).get("task")
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a task of the harness ({' '.join(str(error).split())})") from None
    if not isinstance(name, str):
        raise DataError(f"{path}: names no task; add a line `task: NAME`")
    return name


def _plain(value: Any) -> Any:
    """As JSON can say it: numpy's numbers as plain ones, what is not a number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return number if isinstance(number, (int, float, str, bool)) or number is None else str(number)

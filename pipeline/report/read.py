"""What a report is made of: manifests, curves and evaluations of one run, read from its folder."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline import manifest as manifests
from pipeline.config import save_recipe
from pipeline.errors import DataError
from pipeline.journal import Journal
from pipeline.manifest import MANIFEST, Manifest
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.spool import METRICS
from pipeline.stages import Stage, stages

Curve = tuple[list[float], list[float]]  # steps, values
TOKENIZER_REPORT = "tokenizer/report.json"
HARNESS_RESULTS = "harness/results.json"
COMPARISONS = "comparisons/*.json"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")  # not allowed in XML, so not in SVG


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it. What has not been made is None or absent."""

    recipe: Recipe
    stages: dict[str, Stage]
    manifests: dict[str, Manifest | None]
    evaluations: dict[str, Any]
    tokenizer: dict[str, Any] | None = None  # tokenizer/report.json
    harness: dict[str, Any] | None = None  # harness/results.json
    comparisons: tuple[dict[str, Any], ...] = ()  # comparisons/*.json

    def curves(self, stage: str) -> dict[str, Curve]:
        """Every metric of a stage that was logged by step, in the order of the steps."""
        points: dict[str, dict[int, float]] = {}
        path = self.recipe.workdir / "logs" / (stage + METRICS)
        if path.is_file():
            for line, _ in Journal(path).read():
                step = line.get("step")
                if isinstance(step, int):
                    for name, value in line["metrics"].items():
                        points.setdefault(clean(name), {})[step] = value
        return {
            name: ([float(step) for step in sorted(found)], [found[step] for step in sorted(found)])
            for name, found in points.items()
        }


def read_run(recipe: Recipe) -> Run:
    """Read what there is. A damaged evaluation file is told and left out.

    Raises: DataError when a manifest is damaged.
    """
    known = stages(recipe)
    found = {
        name: manifests.load(recipe.workdir / stage.folder)
        if (recipe.workdir / stage.folder / MANIFEST).is_file()
        else None
        for name, stage in known.items()
    }
    evaluations = {}
    for path in sorted((recipe.workdir / "evaluation").glob("*.json")):
        if path.name in (MANIFEST, manifests.BUILDING):
            continue
        try:
            evaluations[path.stem] = clean(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            log.warning("report: %s is damaged and left out: %s", path, error)
    if not any(found.values()):
        raise DataError(f"{recipe.workdir}: no stage has finished there, so there is nothing to report; `pipeline run`")
    tokenizer = read_json(recipe.workdir / TOKENIZER_REPORT) if found.get("tokenizer") else None
    harness = read_json(recipe.workdir / HARNESS_RESULTS)
    comparisons = [read_json(path) for path in sorted(recipe.workdir.glob(COMPARISONS))]
    return Run(recipe, known, found, evaluations, tokenizer, harness, tuple(one for one in comparisons if one))


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of numbers; None where there is none, or it is damaged, which is told."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = clean(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        log.warning("report: %s is damaged and left out: %s", path, error)
        return None
    return found


def content_fingerprint(recipe: Recipe) -> str:
    """Names all that a report shows, and the code that makes it: equal ones give the same page."""
    digest = hashlib.sha256(f"{__version__}\n{save_recipe(recipe)}".encode())
    here = Path(__file__).parent
    paths = [path for pattern in ("*.py", "*.html", "*.css") for path in here.glob(pattern)]
    paths += [recipe.workdir / stage.folder / MANIFEST for stage in stages(recipe).values()]
    paths += (recipe.workdir / "finetune").glob("*/grid.json")
    paths += (recipe.workdir / "evaluation").glob("*.json")
    paths += [recipe.workdir / TOKENIZER_REPORT, recipe.workdir / HARNESS_RESULTS]
    paths += recipe.workdir.glob(COMPARISONS)
    paths += (recipe.workdir / "logs").glob("*" + METRICS)
    for path in sorted(set(paths)):
        if path.is_file():
            digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            with open(path, "rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:32]


def clean(value: Any) -> Any:
    """Text that can be written as UTF-8 and as XML: no lone surrogates, no control characters."""
    if isinstance(value, str):
        return CONTROL.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value

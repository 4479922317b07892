"""Make `workdir/report.html`: what a run made and how good it is, on one page that needs nothing else.

No script, no network: styles and pictures (SVG) are inside. All text passes through jinja2's escaping or through
matplotlib's, and the page forbids scripts by a Content-Security-Policy besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import save_recipe
from pipeline.files import write_text
from pipeline.journal import SYSTEM
from pipeline.recipe import Recipe
from pipeline.report import grid as grid_report
from pipeline.report.grid import columns, grids
from pipeline.report.mix import planned_mix
from pipeline.report.read import Curve, Run, clean, content_fingerprint, read_run

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
SAMPLES, SAMPLE_LENGTH = 8, 1500  # shown of each kind; characters of each
GROUPS = ("sources", "languages")  # of documents, of which each member gets a funnel of its own
MOST_FUNNELS = 12
WRITING = ("sft", "seq2seq")  # tasks whose answers are texts
MOST_FILES = 3  # corpora in the picture of the lineage; more are one box
CURVES = {  # metric: title, unit, whether the scale begins at 0
    "tokens_per_second": ("Throughput", "tokens/s", True),
    "mfu": ("Model FLOPs utilisation", "share of the peak", True),
    "learning_rate": ("Learning rate", "", True),
    "gradient_norm": ("Gradient norm", "", True),
    "data_wait": ("Waiting for data", "share of the time", True),
    "memory_gib": ("Memory of a rank", "GiB", True),
}
MAIN = ("loss", "tokens_per_second", "mfu", "learning_rate")  # and what is validated; the others are folded away


def write_report(recipe: Recipe) -> Path:
    """Write the report of what there is; nothing is done when it shows that already. Returns its path.

    The pictures also go to `logs/plots/`, from where they are sent to MLflow.
    Raises: DataError when no stage has finished.
    """
    target = recipe.workdir / REPORT
    mark = f'<meta name="content" content="{content_fingerprint(recipe)}">'
    if target.is_file() and mark in target.read_text(encoding="utf-8")[:2000]:
        return target
    run = read_run(recipe)
    pictures = draw(run)
    for name, svg in pictures.items():
        write_text(recipe.workdir / "logs" / "plots" / f"{name}.svg", svg + "\n")
    write_text(target, _environment().get_template("report.html").render(**_view(run, pictures), mark=mark))
    return target


def draw(run: Run) -> dict[str, str]:
    """All pictures that the run has data for, as SVG text by name."""
    from pipeline.report import plots

    found: dict[str, str] = {}
    counts = _counts(run, "shard")
    if counts:
        found["documents"] = plots.documents(clean(counts["sources"]))
        if counts["dropped"]:
            dropped = {rule: float(part["documents"]) for rule, part in clean(counts["dropped"]).items()}
            ordered = dict(sorted(dropped.items(), key=lambda item: -item[1]))
            found["dropped"] = plots.bars("Documents dropped, by rule", "documents", ordered, form="{:,.0f}")
            found |= _funnels(clean(counts))
    for name, stage in run.stages.items():
        if stage.trains and "@" not in name:  # a grid's combinations are drawn together
            found |= _training_pictures(name, run.curves(name))
    found |= grid_report.pictures(run)
    language = run.evaluations.get("language_model")
    if language:
        values = {"this model": language["bits_per_byte"], **language["baselines"]}
        ordered = dict(sorted(values.items(), key=lambda item: item[1]))
        found["bits_per_byte"] = plots.bars("Held-out text", "bits per byte (less is better)", ordered, "this model")
    for name, result in run.evaluations.items():
        if isinstance(result, dict) and result.get("task") in WRITING:
            found[f"evaluation.{name}"] = plots.before_after(name, result["base"], result["finetuned"])
        elif isinstance(result, dict) and "confusion" in result:
            found[f"evaluation.{name}"] = plots.confusion(name, result["labels"], result["confusion"])
            if result.get("calibration"):
                found[f"calibration.{name}"] = plots.reliability(f"{name}: calibration", result["calibration"])
    found["lineage"] = plots.lineage(*_graph(run))
    return found


def _funnels(counts: dict[str, Any]) -> dict[str, str]:
    """From what was read to what was kept: of all, of each source and of each language, the largest first."""
    from pipeline.corpus.drops import in_order
    from pipeline.report import plots

    def draw_one(title: str, part: dict[str, Any]) -> str:
        return plots.funnel(title, part, in_order(part["dropped"]))

    found = {"funnel": draw_one("Documents left after each rule", counts)}
    for group in GROUPS:
        parts = sorted(counts.get(group, {}).items(), key=lambda item: -item[1]["read"]["documents"])
        if len(parts) > 1:  # one is the same as all
            for number, (name, part) in enumerate(parts[:MOST_FUNNELS]):
                found[f"funnel.{group}.{number}"] = draw_one(f"{group.removesuffix('s').capitalize()} {name}", part)
    return found


def _training_pictures(stage: str, curves: dict[str, Curve]) -> dict[str, str]:
    from pipeline.report import plots

    found: dict[str, str] = {}
    losses = {"training": curves.get("loss"), "held-out": curves.get("validation/loss")}
    drawn = {name: curve for name, curve in losses.items() if curve}
    if drawn:
        found[f"{stage}.loss"] = plots.curves("Loss", "nats per token", drawn, cut=True)
    for name, curve in curves.items():
        metric = name.removeprefix("validation/")
        if metric not in (name, "loss"):
            title = metric.replace("_", " ").capitalize()
            found[f"{stage}.{name.replace('/', '.')}"] = plots.curves(f"{title}, held-out", "", {"held-out": curve})
        elif name in CURVES:
            title, unit, zero = CURVES[name]
            found[f"{stage}.{name}"] = plots.curves(title, unit, {name: curve}, zero=zero)
    return found


def _ordered(stage: str, pictures: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Names of a stage's pictures: those that are shown at once, and those that are folded away."""
    mine = [name for name in pictures if name.startswith(f"{stage}.")]
    validated = [name for name in mine if name.startswith(f"{stage}.validation.")]
    main = [f"{stage}.{name}" for name in (MAIN if stage == "pretrain" else ("grid", "combinations", *MAIN[:1]))]
    shown = [name for name in (main[0], *validated, *main[1:]) if name in mine]
    return shown, [name for name in mine if name not in shown]


def _graph(run: Run) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Nodes (stage → fingerprint) and edges of the chain of manifests, corpora first."""
    nodes: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for name, made in run.manifests.items():
        if made is None or "@" in name:
            continue
        inputs = made.inputs
        if run.stages[name].chooses and (tried := run.manifests.get(next(iter(inputs), ""))):
            inputs = tried.inputs  # of a grid one box is drawn, and what all its combinations read
        files = {clean(source): digest for source, digest in inputs.items() if ":" in source}
        if len(files) > MOST_FILES:  # they stand side by side in one row
            files = {f"{len(files)} sources": ""}
        nodes |= {source: digest[:12] for source, digest in files.items()}
        reads = [*files, *(source for source in inputs if ":" not in source)]
        edges += [(source, name) for source in reads if source in nodes]
        nodes[name] = made.fingerprint[:12]
    return nodes, edges


# --- what the template shows ---------------------------------------------------------------------------------------


def _view(run: Run, pictures: dict[str, str]) -> dict[str, Any]:
    from markupsafe import Markup

    made = {name: manifest for name, manifest in run.manifests.items() if manifest is not None}
    tasks = {name: result for name, result in run.evaluations.items() if isinstance(result, dict)}
    sft = {name: result for name, result in tasks.items() if result.get("task") in WRITING}
    classify = {name: result for name, result in tasks.items() if "confusion" in result}
    other = {name: result for name, result in tasks.items() if result.get("task") in ("classify", "continue")}
    software: dict[str, dict[str, list[str]]] = {}
    for name, manifest in made.items():
        for package, version in manifest.software.items():
            software.setdefault(package, {}).setdefault(version, []).append(name)
    return {
        "name": run.recipe.name,
        "description": clean(run.recipe.description),
        "settings": clean(save_recipe(run.recipe)),
        # The SVG comes from matplotlib, which escapes the text in it: the one thing that is not escaped here.
        "pictures": {name: Markup(svg) for name, svg in pictures.items()},
        "headlines": _headlines(run, sft, classify),
        "made": made,
        "missing": [name for name, manifest in run.manifests.items() if manifest is None],
        "stale": _stale(run),
        "corpus": clean(_counts(run, "shard")),
        "mix": clean(planned_mix(run)),
        "funnels": {group: [name for name in pictures if name.startswith(f"funnel.{group}.")] for group in GROUPS},
        "most_funnels": MOST_FUNNELS,
        "tokenizer": made.get("tokenizer"),
        "tokenizer_report": run.tokenizer,
        "not_compared": _not_compared(run),
        "tokens": made.get("tokenize"),
        "training": {
            name: _ordered(name, pictures)
            for name, stage in run.stages.items()
            if stage.trains and name in made and "@" not in name
        },
        "grids": {name: (columns(grid), grid) for name, grid in grids(run).items()},
        "facts": {name: _facts(manifest.counts, manifest.metrics) for name, manifest in made.items()},
        "language": run.evaluations.get("language_model"),
        "sft": sft,
        "classify": classify,
        "measured": {name: _facts(_numbers(r), {}) for name, r in other.items() if name not in classify},
        "harness": _harness(run),
        "comparisons": run.comparisons,
        "samples": (run.evaluations.get("samples") or [])[:SAMPLES],
        "most_samples": SAMPLES,
        "load": _load(run),
        "software": software,
    }


def _not_compared(run: Run) -> list[str]:
    """Tokenizers that the recipe names and the report of the tokenizer lacks."""
    known = [one["tokenizer"] for one in run.tokenizer["held_out_bytes_per_token"]] if run.tokenizer else []
    return [name for name in run.recipe.tokenizer.compare if name not in known]


def _headlines(run: Run, sft: Mapping[str, Any], classify: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Number, what it is, what to compare it with."""
    found: list[tuple[str, str, str]] = []
    language = run.evaluations.get("language_model")
    if language:
        beside = ", ".join(f"{name} {value:.3f}" for name, value in language["baselines"].items())
        found.append((f"{language['bits_per_byte']:.3f}", "bits per byte on held-out text", beside))
    for name, result in sft.items():
        metric = next((key for key in result["finetuned"] if key.lower().replace("-", "").startswith("rougel")), None)
        if metric:
            before, after = result["base"][metric], result["finetuned"][metric]
            found.append((f"{after:.3f}", f"ROUGE-L, {name}", f"before fine-tuning {before:.3f}"))
    for name, result in classify.items():
        majority = f"majority class {result['majority_accuracy']:.1%}, macro-F1 {result['macro_f1']:.3f}"
        found.append((f"{result['accuracy']:.1%}", f"accuracy, {name}", majority))
    pretrain = run.manifests.get("pretrain")
    if pretrain:
        counts = pretrain.counts
        if "parameters" in counts and "tokens" in counts:
            found.append((short(counts["parameters"]), "parameters", f"{short(counts['tokens'])} tokens seen"))
    total = sum(manifest.seconds for manifest in run.manifests.values() if manifest)
    found.append((duration(total), "of work in all", f"seed {run.recipe.seed}"))
    return found


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if isinstance(value, (int, float, Mapping))}


def _harness(run: Run) -> list[tuple[str, str, float, float | None]]:
    """Task of the harness, metric, value, standard error."""
    rows = []
    for task, numbers in (run.harness or {}).get("results", {}).items():
        for name, value in numbers.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = numbers.get(f"{metric}_stderr,{filtered}")
                label = metric if filtered == "none" else f"{metric} ({filtered})"
                rows.append((task, label, value, error if isinstance(error, (int, float)) else None))
    return rows


def _stale(run: Run) -> list[tuple[str, str]]:
    """(stage, what it reads) where the latter was made again since: the numbers do not belong together."""
    return [
        (name, need)
        for name, manifest in run.manifests.items()
        if manifest
        for need in run.stages[name].needs
        if (upstream := run.manifests.get(need)) and manifest.inputs.get(need) != upstream.fingerprint
    ]


def _counts(run: Run, stage: str) -> dict[str, Any]:
    manifest = run.manifests.get(stage)
    return manifest.counts if manifest else {}


def _facts(counts: Mapping[str, Any], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Counts and metrics of a manifest as lines of a table."""
    found: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}, {key}" if prefix else str(key), item)
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            found.append((clean(prefix.replace("_", " ")), number(value)))

    walk("", counts)
    walk("", metrics)
    return found


def _load(run: Run) -> list[tuple[str, float, float, float]]:
    """Means of the machine's load while each stage ran: stage, processor %, memory GiB, GPU % (or -1)."""
    found = []
    for name, manifest in run.manifests.items():
        curves = run.curves(name) if manifest else {}
        means = {key: sum(values) / len(values) for key, (_, values) in curves.items() if key.startswith(SYSTEM)}
        gpus = [value for key, value in means.items() if key.endswith("_utilization_percentage") and "gpu" in key]
        if f"{SYSTEM}cpu_utilization_percentage" in means:
            memory = means[f"{SYSTEM}system_memory_usage_megabytes"] / 1024
            found.append(
                (name, means[f"{SYSTEM}cpu_utilization_percentage"], memory, sum(gpus) / len(gpus) if gpus else -1.0)
            )
    return found


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size, "duration": duration, "cut": cut, "share": share}
    return environment


# --- numbers as people read them -----------------------------------------------------------------------------------


def number(value: Any) -> str:
    """1234567 → 1,234,567; 0.123456 → 0.1235; words as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(str(value)) if value is not None else "–"
    if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def short(value: float) -> str:
    """1234567 → 1.23 M."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes → 12.3 MB."""
    return short(value) + "B" if value >= 1000 else f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds → 1 h 02 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def cut(text: Any, length: int = SAMPLE_LENGTH) -> str:
    """The beginning of a long text."""
    whole = str(text)
    return whole if len(whole) <= length else whole[:length] + " …"


def share(part: float, whole: float) -> str:
    """3, 200 → 1.5%."""
    return f"{part / whole:.1%}" if whole else "–"

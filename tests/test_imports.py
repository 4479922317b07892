"""Imports run one way, down the house; each heavy library has one door; the command starts without any of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PROJECT

PACKAGE = PROJECT / "pipeline"

# From the top of the house to its ground. A module may import its own floor and those below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("stage_commands",),
    ("closing", "dry_run", "generate", "tasks", "run", "status"),
    ("report", "stage_state", "stages"),
    (
        "evaluate.evaluate",
        "evaluate.harness",
        "train.pretrain",
        "train.finetune",
        "train.grid",
        "model.export",
        "tokens.tokenize",
        "corpus.shard",
    ),
    ("evaluate",),
    ("train",),
    ("model", "tokens", "corpus"),
    ("tracking", "cluster"),
    ("mlflow_store",),
    ("delivery", "lineage", "registered", "spool", "journal", "system_metrics"),
    ("typed",),
    ("config", "manifest", "recipe", "progress", "locks", "owner", "files"),
    ("settings",),
    ("errors",),
    ("printable", "memory"),
    ("__init__",),
)
DOORS = {"deepspeed": "train/engine.py", "mlflow": "mlflow_store.py"}
ROOMS_APART = {("model", "train"), ("corpus", "tokens"), ("model", "tokens"), ("corpus", "model")}
HEAVY = ("torch", "transformers", "deepspeed", "mlflow", "datasets", "pyarrow", "sklearn", "matplotlib", "numpy")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str) -> str | None:
    """The module of the package that an imported name lies in."""
    if name != "pipeline" and not name.startswith("pipeline."):
        return None
    parts = name.split(".")[1:]
    known = modules()
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def floor(module: str) -> int:
    """The floor of a module: that of its longest name in FLOORS."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for number, floor_names in enumerate(FLOORS):
            if name in floor_names:
                return number
    raise AssertionError(f"pipeline/{module} has no floor in FLOORS; give it one")


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_import_runs_up_the_house(module: str) -> None:
    path = modules()[module]
    wrong = []
    for name in imports(path):
        target = inside(name)
        if target is None or target == module:
            continue
        rooms = (module.split(".", maxsplit=1)[0], target.split(".")[0])
        if (floor(target) < floor(module) and rooms[0] != rooms[1]) or rooms in ROOMS_APART:
            wrong.append(f"{module} imports {target}")
    assert not wrong


def test_stages_are_not_imported_by_their_rooms() -> None:
    """A stage's module may use its room; nothing but `load_stage` uses a stage's module."""
    stage_modules = set(next(names for names in FLOORS if "train.pretrain" in names))
    for module, path in modules().items():
        for name in imports(path):
            assert inside(name) not in stage_modules or module == inside(name), f"{module} imports {inside(name)}"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_libraries_have_one_door(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users == {DOORS[library]}


def test_the_command_starts_without_heavy_libraries() -> None:
    program = "import pipeline.cli, pipeline.run, pipeline.stages, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & set(HEAVY)

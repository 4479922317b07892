"""The corpus that is on every machine: Python's standard library and the packages installed beside this one."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document, Dropped, drop
from pipeline.corpus.locations import Item
from pipeline.corpus.readers.records import MAX_RECORD_BYTES, oversized
from pipeline.errors import DataError
from pipeline.recipe import PythonSource

# Folders without text worth learning: tests (their data too), caches, and in the standard library what is installed
# into it, an editor and a converter that come with it.
_SKIPPED = frozenset({"__pycache__", "test", "tests", "testdata", "test_data"})
_SKIPPED_STDLIB = frozenset({"site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip", "lib-dynload"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def find_python_files(source: PythonSource) -> list[Item]:
    """The .py files of a source's packages in an order that mixes them: by a hash of package and path.

    A bound on the bytes thus cuts an equal share from every package, and the order is the same on every machine that
    has the same versions. Names are `<package>/<path in the package>`; `stdlib` is the standard library's.
    Raises: DataError naming a package that is not installed.
    """
    found: list[Item] = []
    for package in dict.fromkeys(source.packages):
        root = _package_root(source, package)
        if root.is_file():
            found.append(Item(str(root), f"{package}/{root.name}", root.stat().st_size))
            continue
        skipped = _SKIPPED | _SKIPPED_STDLIB if package == "stdlib" else _SKIPPED
        found += [
            Item(path, f"{package}/{Path(path).relative_to(root).as_posix()}", size)
            for path, size in _walk(root, skipped)
        ]
    if not found:
        raise DataError(f"source {source.name}: no Python file in {', '.join(source.packages) or 'no package at all'}")
    return sorted(found, key=lambda item: hashlib.blake2b(os.fsencode(item.name), digest_size=16).digest())


def _walk(folder: Path, skipped: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Path and size of each .py file (scandir: some 6,000 files must take a fraction of a second)."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skipped and not entry.name.startswith("."):
                    yield from _walk(Path(entry.path), skipped)
            elif entry.name.endswith(".py") and entry.is_file():
                yield entry.path, entry.stat().st_size


def _package_root(source: PythonSource, package: str) -> Path:
    """The folder of a package, or the file of a single module, found without importing it."""
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    where = None
    if package.isidentifier():  # a dotted name would import its parent
        try:
            where = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            where = None
    if where is not None and where.submodule_search_locations:
        return Path(next(iter(where.submodule_search_locations)))
    if where is not None and where.origin and where.origin.endswith(".py"):
        return Path(where.origin)
    raise DataError(
        f"source {source.name}: Python package '{package}' is not installed here; install it or take it out of packages"
    )


def read_python(source: PythonSource, item: Item) -> Iterator[Document | Dropped]:
    """One document a file: its source, or its docstrings. Metadata: `package` and `path` in it."""
    with open_stream(item.path) as handle:
        content = handle.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        yield oversized(source.name, item.name, max(item.size, len(content)))
        return
    package, _, path = item.name.partition("/")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")  # Python's own default, and no guess
    document = Document(text, item.name, source.name, source.language, {"package": package, "path": path})
    if source.content == "docstrings":
        try:
            document.text = _docstrings(document.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield drop(document, "not_python", " ".join(str(error).split())[:200], None)
            return
    yield document


def _docstrings(text: str) -> str:
    """Docstrings of the module, its classes and functions, in their order, with a blank line between.

    Raises: what `ast.parse` raises on text that is no Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in other people's strings
        tree = ast.parse(text)
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(inspect.cleandoc(found) for node in nodes if (found := ast.get_docstring(node, clean=False)))

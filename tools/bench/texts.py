"""Real text for benchmarks: what lies on every machine that the pipeline runs on, or `--input FILE.jsonl`.

Kinds: `documentation` (.md, .rst, .txt of installed packages), `comments` (docstrings and comments of Python sources),
`mail` (messages among Python's own test data, and package metadata, which is written as mail is), `prose` (the
standard library's topics, licences), `translations` (.po files, in many languages).
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import os
import random
import re
import site
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LEAST, _MOST = 200, 100_000  # characters of a document
_LARGEST = 1_000_000  # bytes of a file that is opened
_REAL = 12_000_000  # bytes of text as it lies here; finding more takes minutes, beyond it lines are permuted
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_NESTED = (_LIBRARY, "site-packages")  # within it, but a place of its own
_PO_TEXT = re.compile(r'^(?:msgstr |)"(.*)"$', re.MULTILINE)


@dataclass(frozen=True)
class Corpus:
    """Documents on disk, one JSON line each (`id`, `kind`, `text`). bytes: of their texts in UTF-8."""

    path: Path
    documents: int
    bytes: int
    kinds: dict[str, int]

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """The options that say which text is taken, and how much."""
        parser.add_argument("--input", type=Path, metavar="FILE", help="JSON lines with `text`; else what lies here")
        parser.add_argument("--megabytes", type=float, default=20, help="of text (default 20); more: lines permuted")
        parser.add_argument("--seed", type=int, default=1, help="of the choice and the permutation")

    @classmethod
    def gather(cls, options: argparse.Namespace, folder: Path, kinds: tuple[str, ...] = ()) -> Corpus:
        """Write the documents that the options ask for into `folder`, in random order.

        kinds: only these; all where none is named. Memory: the real text, once.
        """
        random_ = random.Random(options.seed)
        if options.input:
            found = list(read_jsonl(options.input))
            random_.shuffle(found)
        else:
            found = _enough(local_documents(random_, kinds), min(options.megabytes * 1e6, _REAL))
        chosen = [one for one in found if not kinds or one["kind"] in kinds]
        if not chosen:
            raise SystemExit(f"no document of {', '.join(kinds) or 'any kind'} was found")
        path, size, counts = folder / "documents.jsonl", 0, dict.fromkeys(sorted({one["kind"] for one in chosen}), 0)
        with open(path, "w", encoding="utf-8") as out:
            for document in _to_size(chosen, options.megabytes * 1e6, random_):
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
                size += len(document["text"].encode())
                counts[document["kind"]] += 1
        print(f"{sum(counts.values()):,} documents, {size / 1e6:.1f} MB: {counts}\n", flush=True)
        return cls(path, sum(counts.values()), size, counts)


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """Documents of a file; `id` and `kind` are made up where they are missing."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            document = json.loads(line)
            yield {
                "id": str(document.get("id", number)),
                "kind": document.get("kind", "input"),
                "text": document["text"],
            }


def _enough(documents: Iterable[dict[str, Any]], size: float) -> list[dict[str, Any]]:
    """The first documents that hold `size` bytes together; all where they hold less."""
    found = []
    for document in documents:
        found.append(document)
        size -= len(document["text"].encode())
        if size <= 0:
            break
    return found


def _to_size(documents: list[dict[str, Any]], size: float, random_: random.Random) -> Iterator[dict[str, Any]]:
    """The documents until there is enough; then new ones, of as many lines, drawn from those of their kind."""
    lines: dict[str, list[str]] = {}
    repeat = 0
    while True:
        for one in documents:
            text = one["text"]
            if repeat:
                text = "\n".join(random_.choices(lines[one["kind"]], k=text.count("\n") + 1))
            yield one if not repeat else one | {"id": f"{one['id']}#{repeat}", "text": text}
            size -= len(text.encode())
            if size <= 0:
                return
        if not lines:
            for document in documents:
                lines.setdefault(document["kind"], []).extend(document["text"].split("\n"))
        repeat += 1


# --- what lies on this machine --------------------------------------------------------------------------------------


def local_documents(random_: random.Random, kinds: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Each real document once, as the same text may lie in many places; one of each kind in turn, in random order."""
    waiting: dict[str, list[tuple[str, Path]]] = {}
    for kind, name, path in _files():
        if not kinds or kind in kinds:
            waiting.setdefault(kind, []).append((name, path))
    for files in waiting.values():
        random_.shuffle(files)
    turns = {kind: _documents(kind, files) for kind, files in sorted(waiting.items())}
    seen: set[int] = set()
    while turns:
        for kind in [*turns]:
            for name, text in turns[kind]:
                if _LEAST <= len(text) <= _MOST and hash(text) not in seen:
                    seen.add(hash(text))
                    yield {"id": name, "kind": kind, "text": text}
                    break
            else:
                del turns[kind]


def _files() -> Iterator[tuple[str, str, Path]]:
    """(kind, name, path) of every file that may be of use; nothing is opened."""
    places = [*((Path(place).name, Path(place)) for place in site.getsitepackages()), ("stdlib", _LIBRARY)]
    base = Path(importlib.util.find_spec("numpy").origin).parent.parent  # type: ignore[union-attr, arg-type]
    if base not in {path for _, path in places}:  # of the environment that this one builds on
        places.append((base.name, base))
    for place, root in places:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(one for one in folders if one != "__pycache__" and (root, one) != _NESTED)
            for name in sorted(names):
                path = Path(folder, name)
                if (kind := _kind(path)) is not None:
                    yield kind, f"{place}/{path.relative_to(root).as_posix()}", path


def _kind(path: Path) -> str | None:
    if path.name == "METADATA" or "test_email" in path.parts or path.suffix in (".eml", ".mbox"):
        return None if path.suffix == ".py" else "mail"
    if path.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS", "CHANGE", "HISTORY")):
        return "prose" if path.suffix in ("", ".txt", ".md", ".rst") else None
    return {".md": "documentation", ".rst": "documentation", ".txt": "documentation", ".py": "comments"}.get(
        path.suffix, "translations" if path.suffix == ".po" else None
    )


def _documents(kind: str, files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents in files of one kind."""
    if kind == "prose":
        import pydoc_data.topics

        yield from ((f"topics/{name}", text.strip()) for name, text in sorted(pydoc_data.topics.topics.items()))
    for name, path in files:
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size < _LARGEST else ""
        except (OSError, UnicodeDecodeError):
            continue  # a name that leads nowhere, or another encoding: there is enough besides
        if kind == "comments":
            yield from ((f"{name}#{part}", found) for part, found in _comments(text))
        else:
            yield name, "\n".join(_PO_TEXT.findall(text)) if kind == "translations" else text.strip()


def _comments(source: str) -> Iterator[tuple[str, str]]:
    """The docstrings of a Python source together, and its comments together."""
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError):
        return  # templates, and sources of other versions
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes))
    yield "docstrings", "\n\n".join(found for found in docstrings if found)
    yield "comments", "\n".join(token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT)

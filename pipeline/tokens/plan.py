"""What the tokenize stage does, cut into tasks: they depend on the input and the settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.corpus.text_tars import Part
from pipeline.errors import DataError
from pipeline.recipe import Recipe, TokenImport
from pipeline.tokens.imports.files import import_files
from pipeline.tokens.imports.flat import FlatFile
from pipeline.tokens.imports.megatron import MegatronFile
from pipeline.tokens.imports.pieces import Piece
from pipeline.tokens.text_sizes import by_source, text_bytes

PARTS: tuple[Part, ...] = ("train", "validation")


@dataclass(frozen=True)
class Task:
    """Text tars, or a piece of a file of tokens, that become one token tar (or several, where they hold more tokens
    than was expected). part: of text tars; a piece of foreign tokens is cut into both parts by its own task.

    amount: bytes of text, or tokens, about.
    """

    part: Part
    source: str
    number: int
    amount: int
    tars: tuple[Path, ...] = ()
    piece: Piece | None = None

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05d}"

    @property
    def stem(self) -> str:
        """Of its files of half-done work."""
        return f"{self.part}-{self.name}"

    def receipt(self, receipts: Path) -> Path:
        return receipts / f"{self.stem}.json"


def plan(recipe: Recipe, eos_id: int) -> list[Task]:
    """All tasks of a recipe. Raises: DataError when there is no training text, or an import is not what it is said."""
    tasks: list[Task] = []
    if not recipe.only_imports:
        bytes_per_token = manifests.load(recipe.workdir / "tokenizer").metrics["bytes_per_token"]
        tasks += plan_text(recipe.workdir / "text", round(recipe.tokenize.shard_tokens * bytes_per_token))
    for one in recipe.tokenize.imports:
        tasks += plan_import(one, recipe.tokenize.shard_tokens, eos_id)
    return tasks


def plan_text(text: Path, task_bytes: int) -> list[Task]:
    """The tasks of text tars: consecutive ones of a source that hold about `task_bytes` of text.

    Raises: DataError when there is no training text.
    """
    tasks = []
    for part in PARTS:
        sizes = text_bytes(text, part)
        if not sizes and part == "train":
            raise DataError(f"{text}: no training text; add sources, loosen corpus.rules or lower corpus.validation")
        for source, group in by_source(sizes).items():
            start, number = 0, 0
            while start < len(group):
                stop, held = start + 1, sizes[group[start]]
                while stop < len(group) and held + sizes[group[stop]] <= task_bytes:
                    held += sizes[group[stop]]
                    stop += 1
                tasks.append(Task(part, source, number, round(held), tuple(group[start:stop])))
                start, number = stop, number + 1
    return tasks


def plan_import(one: TokenImport, task_tokens: int, eos_id: int) -> list[Task]:
    """The tasks of an import: pieces of its files. Raises: DataError when they hold nothing, or another format."""
    files = import_files(one)
    pieces = [piece for path in files for piece in open_import(path, one, eos_id).pieces(task_tokens)]
    if not pieces:
        raise DataError(f"{one.path}: import {one.name} holds no token")
    return [Task("train", one.name, number, piece.tokens, piece=piece) for number, piece in enumerate(pieces)]


def open_import(path: Path, one: TokenImport, eos_id: int) -> MegatronFile | FlatFile:
    """Raises: DataError when the file is not what the import's format says."""
    if one.format == "megatron":
        return MegatronFile(path)
    return FlatFile(path, one.dtype, eos_id)

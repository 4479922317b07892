"""Functions and their docstrings, out of Python sources in the text tars: real pairs of code and plain words.

The sources are anybody's, so nothing here trusts them: a regular expression whose every repetition is bounded finds
what looks like a function or class with a docstring, and only the few kilobytes of one candidate ever reach Python's
parser, never a whole file.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pipeline.corpus.document import Document

MAX_DOCSTRING = 4000  # characters; a longer docstring is passed over
MAX_SOURCE = 1200  # characters of a function's source without its docstring, about 350 tokens
MAX_SUMMARY = 160  # characters
MIN_SUMMARY_WORDS = 3
MAX_TEXT = 1000  # characters of a docstring shown to the classifier
MIN_TEXT_WORDS = 8

_OPENING = re.compile(r":[ \t]{0,4}(?:\#[^\n]{0,200})?\n\s{0,100}[rRuU]?(?P<quote>\"\"\"|''')")
MAX_HEADER = 2000  # characters from `def` to the docstring's opening quotes
_HEADER = re.compile(
    r"""(?P<indent>[ ]{0,40}|\t{0,10})
    (?:(?P<kind>(?:async[ ]{1,4})?def|class)[ ]{1,4})\w{1,100}
    [ ]{0,4}(?:\((?:[^()]|\((?:[^()]|\([^()]{0,200}\)){0,200}\)){0,800}\))?   # parameters, with brackets in them
    [^:\n()"'\#]{0,100}(?:\([^()\n]{0,100}\))?[^:\n]{0,100}   # -> annotation""",
    re.VERBOSE,
)
_FIELD = re.compile(r"^(:|@|>>>|\.\. |\*|-|=|\#|Args?\b|Param|Return(s|):|Usage|Example|Note)")
_SENTENCE_END = re.compile(r"(?<=[\w)`'\"\]])\.(?=\s+[A-Z`(\[:])")


@dataclass(frozen=True)
class Candidate:
    """Something with a docstring. kind: `def`, `async def` or `class`; docstring: as it stands in the file; source: the
    whole block as it stands there, None when it is longer than any example may be."""

    kind: str
    docstring: str
    source: str | None


class Unfit(Exception):
    """A candidate that makes no example; `args[0]` is the reason, as counted in the stage's manifest."""


def candidates(document: Document) -> Iterator[Candidate]:
    """What looks like a function or class with a docstring, in the order of the file. Never raises."""
    text = document.text
    for opening in _OPENING.finditer(text):
        first = max(0, opening.start() - MAX_HEADER)
        word = max(text.rfind("def ", first, opening.start()), text.rfind("class ", first, opening.start()))
        header = _HEADER.fullmatch(text, text.rfind("\n", first, word) + 1, opening.start()) if word >= 0 else None
        quote = opening["quote"]
        close = text.find(quote, opening.end(), opening.end() + MAX_DOCSTRING)
        if header is None or close < 0:
            continue
        after = close + len(quote)
        limit = after + 2 * MAX_SOURCE
        stop = _block_end(len(header["indent"])).search(text, after, limit)
        whole = stop is not None or limit >= len(text)
        source = text[header.start() : stop.start() if stop else len(text)] if whole else None
        yield Candidate(header["kind"], text[opening.end() : close], source)


@lru_cache(maxsize=64)
def _block_end(indent: int) -> re.Pattern[str]:
    """The end of the line before the first line of code that is indented by at most `indent`."""
    return re.compile(rf"\n(?=[ \t]{{0,{indent}}}[^\s#])")


def summary_of(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line.

    Raises: Unfit (`no_summary`: empty or a field list; `short_summary`; `long_summary`).
    """
    paragraph = re.split(r"\n[ \t]*\n", docstring.strip(), maxsplit=1)[0]
    words = paragraph.split()
    if not words or _FIELD.match(words[0]) or "\\" in paragraph:
        raise Unfit("no_summary")
    line = " ".join(words)
    end = _SENTENCE_END.search(line)
    line = line[: end.end()] if end else line.removesuffix("::").rstrip()
    if len(line) > MAX_SUMMARY:
        raise Unfit("long_summary")
    if len(line.split()) < MIN_SUMMARY_WORDS or not any(character.isalpha() for character in line):
        raise Unfit("short_summary")
    return line


def source_without_docstring(candidate: Candidate) -> str:
    """A function's source, dedented, without its docstring.

    Raises: Unfit (`syntax`: the block is no function, or too deep for the parser; `no_body`: nothing is done in it;
    `long_source`).
    """
    if candidate.source is None:
        raise Unfit("long_source")
    block = textwrap.dedent(candidate.source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in others' strings are not our reader's concern
            function = ast.parse(block).body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError, IndexError):
        raise Unfit("syntax") from None
    if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise Unfit("syntax")
    first, *rest = function.body
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if not is_docstring or (rest and rest[0].lineno <= (first.end_lineno or 0)):
        raise Unfit("syntax")
    if all(isinstance(statement, (ast.Pass, ast.Raise, ast.Expr)) for statement in rest):
        raise Unfit("no_body")  # abstract methods and stubs: the words say what the code does not
    lines = block.split("\n")
    kept = lines[: first.lineno - 1] + lines[first.end_lineno : function.end_lineno]
    source = "\n".join(line for line in kept if line.strip())  # blank lines cost tokens and tell nothing
    if len(source) > MAX_SOURCE:
        raise Unfit("long_source")
    return source


def text_of(docstring: str) -> str:
    """A docstring as a text to classify: cleaned of its indentation, its beginning.

    Raises: Unfit (`short_text`).
    """
    text = inspect.cleandoc(docstring)
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT].rsplit(None, 1)[0]
    if len(text.split()) < MIN_TEXT_WORDS:
        raise Unfit("short_text")
    return text

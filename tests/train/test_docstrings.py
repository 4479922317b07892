"""Finding functions and docstrings in anybody's Python."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import python_file

from pipeline.train.docstrings import (
    MAX_SOURCE,
    Candidate,
    Unfit,
    candidates,
    source_without_docstring,
    summary_of,
    text_of,
)

FILE = '''
import os


class Shelf(Base):
    """Holds books in the order in which they were put there."""

    size = 3

    @property
    def first(
        self,
        default: dict[str, int] = {"a": (1, 2)},  # a comment: with a colon
    ) -> tuple[int, int]:
        """The book at the front, or the default. Never fails.

        Longer words about it.
        """

        book = self.books[0]

        return book


async def fetch(shelf, *names):
    r\'\'\'Fetch books by name from the shelf\'\'\'
    return [shelf[name] for name in names]


def plain(a):
    return a
'''


def found(text: str) -> list[Candidate]:
    return list(candidates(python_file("stdlib", "shelf.py", text)))


def reason(text: str) -> str:
    with pytest.raises(Unfit) as caught:
        source_without_docstring(found(text)[0])
    return str(caught.value)


def test_finds_functions_and_classes_with_docstrings() -> None:
    shelf, first, fetch = found(FILE)
    assert [candidate.kind for candidate in (shelf, first, fetch)] == ["class", "def", "async def"]
    assert summary_of(first.docstring) == "The book at the front, or the default."
    assert summary_of(fetch.docstring) == "Fetch books by name from the shelf"
    assert text_of(shelf.docstring) == "Holds books in the order in which they were put there."


def test_source_has_no_docstring_no_blank_lines_and_ends_with_the_function() -> None:
    _, first, fetch = found(FILE)
    assert source_without_docstring(first).splitlines() == [
        "def first(",
        "    self,",
        '    default: dict[str, int] = {"a": (1, 2)},  # a comment: with a colon',
        ") -> tuple[int, int]:",
        "    book = self.books[0]",
        "    return book",
    ]
    assert source_without_docstring(fetch).splitlines()[-1] == "    return [shelf[name] for name in names]"


@pytest.mark.parametrize(
    ("docstring", "why"),
    [
        ("", "no_summary"),
        (":param x: a number to add", "no_summary"),
        (">>> add(1, 2) == 3", "no_summary"),
        ("Adds numbers.", "short_summary"),
        ("1 + 2 = 3", "short_summary"),
        ("word " * 60, "long_summary"),
        ("A path such as C:\\new in it", "no_summary"),
    ],
)
def test_summaries_that_teach_nothing(docstring: str, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        summary_of(docstring)


def test_summary_is_one_sentence_on_one_line() -> None:
    assert summary_of("\n    Return the sum\n    of e.g. two numbers. It is fast.\n\n    More.") == (
        "Return the sum of e.g. two numbers."
    )
    assert summary_of("Say hello to the user::\n\n    hello") == "Say hello to the user"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('def stub(a):\n    """Say what a subclass must do."""\n    raise NotImplementedError\n', "no_body"),
        ('def stub(a):\n    """Say what a subclass must do."""\n    ...\n', "no_body"),
        ('def long(a):\n    """Does one thing very often."""\n' + "    a += 1\n" * 1000, "long_source"),
        ('def bad(a):\n    """Does what nobody can parse."""\n    return return\n', "syntax"),
        ('def semi(a):\n    """Does it all in one line."""; return a\n', "syntax"),
    ],
)
def test_functions_that_make_no_example(text: str, why: str) -> None:
    assert reason(text) == why


@pytest.mark.parametrize("opener", ["(", "[", "-", "not ", "lambda: ", "a.", "a+", "f(", "{0:"])
def test_source_that_is_too_deep_for_the_parser_is_passed_over(opener: str) -> None:
    deep = opener * (MAX_SOURCE // len(opener))
    assert reason(f'def deep(a):\n    """Goes down and never comes up."""\n    return {deep}\n') == "syntax"


def test_unbalanced_headers_cost_little() -> None:
    hostile = "def f(" * 20_000 + ':\n"""' + "class C((((((" * 5_000 + ':\n"""'
    assert found(hostile) == []


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="def class(a):\n\t \"'#,=*[]{}\\x0é漢", max_size=300),
    st.text(alphabet="ab \n\t\"'():\\#漢", max_size=100),
)
def test_nothing_but_unfit_comes_out_of_any_text(before: str, inside: str) -> None:
    text = f'{before}\ndef f(a):\n    """{inside}"""\n    return a\n{before}'
    for candidate in found(text):
        for make in (source_without_docstring, lambda c: summary_of(c.docstring), lambda c: text_of(c.docstring)):
            try:
                make(candidate)
            except Unfit:
                continue

"""What others wrote, on one line and without anything that a terminal acts on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, RecipeError
from pipeline.printable import one_line, printable, without_secrets


@given(st.text(st.characters(exclude_categories=())))
def test_only_shown_never_acted_on(text: str) -> None:
    assert printable(text).isprintable()
    assert one_line(text).isprintable()
    assert printable(text, kept="\n").replace("\n", "").isprintable()


def test_what_can_be_shown_stays() -> None:
    for text in ("plain", "两个  空格", "naïve café", "ends with a dot."):
        assert printable(text) == one_line(text) == text
    assert printable("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"
    assert one_line("a\n  b\x1b[2J\n") == "a b\\x1b[2J"


def test_bad_input_is_told_on_one_line() -> None:
    assert str(DataError("in.csv: no column 'a\nb'")) == "in.csv: no column 'a b'"
    assert str(RecipeError("x\x1b]0;title\x07")) == "x\\x1b]0;title\\x07"


def test_what_a_url_holds_of_secrets_is_left_out() -> None:
    assert (
        without_secrets("at http://me:p@ss@h:1/a?sig=x and s3://b/c@2, ok?")
        == "at http://…@h:1/a?… and s3://b/c@2, ok?"
    )
    assert (
        without_secrets('{"path": "sftp://me:p@h/a", "mail": "a@b.org"}')
        == '{"path": "sftp://…@h/a", "mail": "a@b.org"}'
    )
    assert without_secrets("sqlite:///runs/mlflow.db, file:///a@b") == "sqlite:///runs/mlflow.db, file:///a@b"

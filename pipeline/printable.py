"""Text that others wrote, such as a file's or a column's name, made fit for a terminal and for one line of a log."""

from __future__ import annotations

import re


def printable(text: str, kept: str = "") -> str:
    """The text with control characters, line ends and marks of direction as escapes, except those `kept`."""
    if text.isprintable():
        return text
    return "".join(
        mark if mark.isprintable() or mark in kept else mark.encode("unicode_escape").decode("ascii") for mark in text
    )


def one_line(text: str) -> str:
    """As printable, where line ends become spaces: what a library says on several lines stays readable."""
    return printable(" ".join(line.strip() for line in text.splitlines()).strip())


def without_secrets(text: str) -> str:
    """The text without the users, passwords and (signed) queries that URLs in it may hold."""
    text = re.sub(r"://[^/\s?'\"]*@", "://…@", text)
    return re.sub(r"(\w://[^\s?]*\?)[^\s'\"]*", r"\1…", text)

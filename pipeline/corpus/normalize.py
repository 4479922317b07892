"""One spelling for the same text: Unicode form, line ends, no control characters, no lone surrogates."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Form = Literal["NFC", "NFKC", "none"]

# All of it on UTF-8 bytes: bytes.translate and replace scan at gigabytes a second, a character class at a hundredth.
_C0 = bytes([*range(0x09), *range(0x0B, 0x20), 0x7F])  # without tab and line feed, with DEL; never inside a character
_C1 = re.compile(b"\xc2[\x80-\x9f]")
_LINE_ENDS = (b"\r\n", b"\r", "\x85".encode(), "\u2028".encode(), "\u2029".encode())
_BYTE_ORDER_MARK = "\ufeff".encode()


def normalize(text: str, form: Form = "NFC") -> str:
    """The text with `\\n` line ends, without control characters, in the given Unicode form. Idempotent.

    CR LF, CR, NEL, LS and PS become line feeds; other control characters (NUL among them; tab stays) and byte order
    marks go; a surrogate pair becomes its character, a lone surrogate U+FFFD. Encodes to UTF-8 without error.
    """
    raw = without_surrogates(text).encode("utf-8")
    for end in _LINE_ENDS:
        raw = raw.replace(end, b"\n")
    raw = raw.translate(None, _C0)
    if raw.isascii():  # ASCII is in every form already
        return raw.decode("ascii")
    text = _C1.sub(b"", raw.replace(_BYTE_ORDER_MARK, b"")).decode("utf-8")
    return text if form == "none" else unicodedata.normalize(form, text)


def without_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text

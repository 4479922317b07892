"""Bytes to text: byte order marks, UTF-8, a declared character set, detection; and repair of text decoded wrongly.

What is UTF-8 is read as UTF-8 whatever is declared: other texts in other sets are almost never valid UTF-8, while pages
and mail often declare what they are not. Facts for the metadata go with the text: `encoding` where it is not UTF-8,
`replaced` where characters were lost, `repaired` where mojibake was undone.
"""

from __future__ import annotations

import codecs
import functools
import re

from pipeline.corpus.compressed import open_stream

Facts = dict[str, str]
FACTS = frozenset({"encoding", "replaced", "repaired"})

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 1 << 16  # bytes that a character set is guessed from
_FEW = 16  # bytes above ASCII below which a guess is worth nothing
_DEFAULT = "cp1252"  # what a short text in a set unknown is most likely in (WHATWG's fallback)
_ESCAPES = b"\x1b"  # a text in ISO-2022-JP is ASCII with escapes


def mark(content: bytes) -> tuple[str, bytes] | None:
    """The encoding that a byte order mark states, and the mark; None where there is none."""
    return next(((name, sign) for sign, name in _MARKS if content.startswith(sign)), None)


def decode(content: bytes, declared: str | None = None) -> tuple[str, Facts]:
    """Text of some bytes, never failing: what cannot be decoded becomes U+FFFD.

    declared: the character set that a header or a page states, in any spelling.
    """
    if found := mark(content):
        name, sign = found
        return _with(content[len(sign) :], name)
    escapes = declared is not None and _ESCAPES in content
    if not escapes:
        try:
            return content.decode("utf-8"), {}
        except UnicodeDecodeError:
            pass  # the usual way on
    chosen = _usable(declared)
    if chosen is not None and chosen != "utf-8":
        try:
            return content.decode(chosen), {"encoding": chosen}
        except UnicodeDecodeError:
            pass  # declared wrongly, or damaged
    if _is_damaged_utf8(content):
        return _with(content, "utf-8")
    return _with(content, _detect(content) or (chosen if chosen != "utf-8" else None) or _DEFAULT)


def _with(content: bytes, name: str) -> tuple[str, Facts]:
    facts = {} if name == "utf-8" else {"encoding": name}
    try:
        return content.decode(name), facts
    except UnicodeDecodeError:
        text = content.decode(name, "replace")
        return text, facts | {"replaced": str(text.count("\ufffd"))}


@functools.lru_cache(256)
def _usable(declared: str | None) -> str | None:
    """Python's name of a declared character set, as the web understands it (latin1 is cp1252); None if unknown."""
    if not declared or len(declared) > 40 or not declared.isascii() or not declared.isprintable():
        return None
    from resiliparse.parse.encoding import map_encoding_to_html5

    name = map_encoding_to_html5(declared.strip(" '\""), fallback_utf8=False)
    name = "gb18030" if name == "gbk" else name  # which extends it, and which the web decodes it with
    try:
        return codecs.lookup(name).name if name else None
    except LookupError:
        return None


def _is_damaged_utf8(content: bytes) -> bool:
    """Whether most of what is not ASCII is valid UTF-8: in texts of other sets it is so by rare chance."""
    text = content[:_SAMPLE].decode("utf-8", "replace")
    lost = text.count("\ufffd")
    return sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text))) >= 2 * lost


def _detect(content: bytes) -> str | None:
    """The character set that a text is in, as uchardet guesses, then charset-normalizer; None where neither can."""
    if len(content) - len(content.translate(None, bytes(range(128, 256)))) < _FEW:
        return None
    from resiliparse.parse.encoding import detect_encoding

    sample = content[:_SAMPLE]
    name = detect_encoding(sample)
    if name and name != "utf-8":
        return name
    from charset_normalizer import from_bytes

    best = from_bytes(sample[: 1 << 13]).best()
    return best.encoding if best is not None and best.encoding not in ("ascii", "utf_8") else None


class FileDecoder:
    """Decodes pieces of one file: where a piece is no UTF-8, in the set that the file's beginning is found to be in."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._declared: str | None = None
        self._asked = False

    def __call__(self, piece: bytes) -> tuple[str, Facts]:
        try:
            return piece.decode("utf-8"), {}
        except UnicodeDecodeError:
            pass  # not UTF-8: only now is the file looked at
        if not self._asked:
            with open_stream(self._path) as handle:
                self._declared = decode(handle.read(_SAMPLE))[1].get("encoding")
            self._asked = True
        return decode(piece, self._declared)


# --- repair --------------------------------------------------------------------------------------------------------

# A first byte of UTF-8 and a byte that follows one, as Windows-1252, Latin-1 or Windows-1251 show them. Scans at 250
# MB/s on one core what ftfy judges at 5: only lines with such a pair are given to it.
_SUSPECT = re.compile(
    "[\xc2-\xf4\u0402-\u040f\u0413-\u045f]"
    "[\x80-\xbf\u0152-\u0178\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122\u0402-\u040f\u0451-\u045f\u0490\u0491\u2116]"
)
_LONGEST_LINE = 1 << 20  # characters; ftfy's own bound


def repair(text: str) -> tuple[str, Facts]:
    """The text with mojibake undone (UTF-8 that was once decoded as something else), line by line, by ftfy.

    Other lines stay as they are, bit for bit.
    """
    if text.isascii() or not _SUSPECT.search(text):
        return text, {}
    from ftfy import fix_encoding

    lines = text.split("\n")
    mended = 0
    for number, line in enumerate(lines):
        if len(line) <= _LONGEST_LINE and not line.isascii() and _SUSPECT.search(line):
            fixed = fix_encoding(line)
            if fixed != line:
                lines[number] = fixed
                mended += 1
    return ("\n".join(lines), {"repaired": str(mended)}) if mended else (text, {})

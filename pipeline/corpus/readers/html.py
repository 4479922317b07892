"""Web pages: their encoding, their address, their main content. A page comes from a file, a web archive or a mail."""

from __future__ import annotations

import html
import re
from collections import Counter

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import BEGINNING, Document, Dropped
from pipeline.corpus.locations import Item
from pipeline.corpus.readers.encoding import decode
from pipeline.corpus.readers.records import Read, bad_record
from pipeline.errors import Stopped
from pipeline.recipe import HtmlSource, PageSource

MAX_PAGE_BYTES = 1 << 23  # a parsed page takes some thirty times its size; Common Crawl cuts pages at 5 MiB
MAX_DEPTH = 2000  # elements within elements; Blink flattens what is deeper than 512, and extraction is quadratic in it

_HEAD = 1 << 16  # bytes in which a page's own words about itself are looked for
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_LINK = re.compile(r"<(?:link|meta)\b[^<>]{0,2000}>", re.IGNORECASE)
_CANONICAL = re.compile(r"(?:rel\s{0,9}=\s{0,9}[\"']?canonical\b|property\s{0,9}=\s{0,9}[\"']?og:url\b)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:href|content)\s{0,9}=\s{0,9}[\"']?\s{0,9}(https?://[^\s\"'<>]{1,2000})", re.IGNORECASE)

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:-]*)(?:[^<>]*(/)>)?")
# Elements without content, and such as end where the next of their kind begins: they do not nest by themselves.
_FLAT = frozenset(
    re.findall(
        r"\w+",
        "a area base br button col embed hr img input link meta param source track wbr body head html nobr p li "
        "dt dd option optgroup tr td th thead tbody tfoot colgroup caption",
    )
)
# Elements whose end tag closes all that was opened within them; that of any other closes itself alone, at most.
_CLOSES_ALL = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote center details dialog dir div dl fieldset figcaption figure footer header "
        "hgroup listing main math menu nav ol pre ruby section summary svg table template ul",
    )
)
_BARRIERS = frozenset(("table", "template", "object", "applet", "marquee"))  # an end tag reaches nothing beyond them


def read_html(source: HtmlSource, item: Item) -> Read:
    """A file is a page. Metadata: `url`, where the page states its own (canonical link, `og:url`)."""
    with open_stream(item.path) as handle:
        content = handle.read(MAX_PAGE_BYTES + 1)
    yield page(source, content, item.name, {"path": item.name})


def page(
    source: PageSource, content: bytes, place: str, metadata: dict[str, str], declared: str | None = None
) -> Document | Dropped:
    """The document of a page, or why there is none. declared: the character set that its server states.

    Rules: `max_page_bytes`, `max_page_depth`, and `bad_record` where the extraction itself fails.
    """
    size = len(content)
    if size > MAX_PAGE_BYTES:
        return Dropped(place, source.name, "max_page_bytes", size, MAX_PAGE_BYTES, "", size)
    text, facts = decode_page(content, declared)
    if (depth := page_depth(text)) > MAX_DEPTH:
        return Dropped(place, source.name, "max_page_depth", depth, MAX_DEPTH, text[:BEGINNING], size)
    facts = metadata | facts
    if "url" not in facts and (address := canonical(text)):
        facts["url"] = address
    try:
        found = extract(text, source.extract)
    except ExtractionError as error:
        return bad_record(source.name, place, f"no text can be extracted: {error}", text, size)
    return Document(found, place, source.name, source.language, facts)


def decode_page(content: bytes, declared: str | None = None) -> tuple[str, dict[str, str]]:
    """Text of a page's bytes; its own declaration counts where its server makes none."""
    if not declared and (found := _CHARSET.search(content[:_HEAD])):
        declared = found[1].decode("ascii")
    return decode(content, declared)


class ExtractionError(Exception):
    """A page that an extractor cannot take."""


def extract(text: str, method: str) -> str:
    """The text of a page: main content, or all of it. Raises: ExtractionError."""
    try:
        if method == "trafilatura":
            from trafilatura import extract as main_content

            return main_content(text, fast=True, include_comments=False) or ""
        from resiliparse.extract.html2text import extract_plain_text

        return extract_plain_text(text, main_content=method == "resiliparse", preserve_formatting=True).strip("\n")
    except (KeyboardInterrupt, SystemExit, Stopped, ImportError):  # not the page's fault
        raise
    except BaseException as error:  # a panic of resiliparse's Rust is no Exception; lxml and trafilatura raise anything
        raise ExtractionError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


def page_depth(text: str) -> int:
    """How deep elements nest, at most, about as a parser would have it; counted to MAX_DEPTH + 1.

    What is never closed counts on, and an end tag of what is not open closes nothing. In SVG and MathML every element
    nests, and `/>` ends one.
    """
    if text.count("<") <= MAX_DEPTH:
        return 0
    opened: list[str] = []
    count: Counter[str] = Counter()  # of the names in it
    deepest = 0
    for closing, tag, ended in _TAG.findall(text):
        name = tag.lower()
        foreign = count["svg"] or count["math"]
        if closing:
            if count[name]:
                count.subtract(_close(opened, name))
        elif not (foreign and ended) and (foreign or name not in _FLAT):
            opened.append(name)
            count[name] += 1
            deepest = max(deepest, len(opened))
            if deepest > MAX_DEPTH:
                break
    return deepest


def _close(opened: list[str], name: str) -> list[str]:
    """Take an element out, with those in it where its end tag closes them too. Returns what was taken out."""
    place = len(opened) - 1
    while opened[place] != name:
        if opened[place] in _BARRIERS:
            return []
        place -= 1
    end = len(opened) if name in _CLOSES_ALL else place + 1
    closed = opened[place:end]
    del opened[place:end]
    return closed


def canonical(text: str) -> str | None:
    """The address that a page states as its own, if any."""
    for tag in _LINK.findall(text[:_HEAD]):
        if _CANONICAL.search(tag) and (found := _ADDRESS.search(tag)):
            return html.unescape(found[1])
    return None

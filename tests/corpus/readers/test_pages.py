from __future__ import annotations

from pathlib import Path

import pytest
from source_reading import document, drops, read, texts

from pipeline.corpus.document import Dropped
from pipeline.corpus.readers import html

PAGE = """<!doctype html><html><head><title>T</title><meta charset="{charset}">
<link rel="canonical" href="https://x.org/a?b=1&amp;c=2"><style>p {{color: red}}</style><script>var x = 1;</script>
</head><body><nav><ul><li><a href="/">Home</a></li><li><a href="/b">Menu of this site</a></li></ul></nav>
<main><h1>A heading</h1>{words}</main><footer>Copyright of nobody</footer></body></html>"""
WORDS = "".join(
    f"<p>Où étions-nous ? Paragraph {n} of this page has words enough, and commas, to stay.</p>" for n in range(5)
)


@pytest.mark.parametrize("method", ["resiliparse", "trafilatura", "all_text"])
def test_the_main_content_of_a_page(tmp_path: Path, method: str) -> None:
    (tmp_path / "a.html").write_text(PAGE.format(charset="utf-8", words=WORDS), encoding="utf-8")
    (tmp_path / "not_a_page.txt").write_text("x")
    found = document(read("html", tmp_path, extract=method))
    assert found.text.count("Où étions-nous ? Paragraph") == 5
    assert "A heading" in found.text
    assert ("Menu of this site" in found.text) == (method == "all_text")
    assert "color" not in found.text and "var x" not in found.text
    assert (found.id, found.metadata) == ("a.html", {"path": "a.html", "url": "https://x.org/a?b=1&c=2"})


def test_a_page_states_its_encoding(tmp_path: Path) -> None:
    for number, (stated, real) in enumerate([("iso-8859-1", "cp1252"), ("gb2312", "gb18030"), ("koi8-r", "koi8-r")]):
        words = {"cp1252": "déjà là – “où”", "gb18030": "今天天气很好，镕", "koi8-r": "Привет, мир"}[real]
        (tmp_path / f"{number}.html").write_bytes(PAGE.format(charset=stated, words=f"<p>{words}</p>").encode(real))
        found = document(read("html", tmp_path / f"{number}.html"))
        assert words in found.text
        assert found.metadata["encoding"] == real


def test_what_is_utf8_is_read_as_utf8_whatever_is_declared(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(PAGE.format(charset="iso-8859-1", words="<p>Où êtes-vous</p>").encode())
    found = document(read("html", tmp_path))
    assert "Où êtes-vous" in found.text
    assert "encoding" not in found.metadata


@pytest.mark.parametrize(
    "charset", ["unicode_escape", "rot13", "idna", "punycode", "undefined", "zip", "x" * 500, "utf-7"]
)
def test_a_declared_encoding_that_the_web_does_not_know_is_not_used(tmp_path: Path, charset: str) -> None:
    (tmp_path / "a.html").write_bytes(PAGE.format(charset=charset, words=r"<p>caf\u00e9 +AGE- ét").encode("cp1252"))
    assert r"caf\u00e9 +AGE- ét" in document(read("html", tmp_path)).text


@pytest.mark.parametrize("method", ["resiliparse", "trafilatura", "all_text"])
@pytest.mark.parametrize(
    "hostile",
    [
        "<div>" * 10_000 + "deep" + "</div>" * 10_000,
        "<div>" * 10_000,
        "".join(f"<b id={n}><p>" for n in range(10_000)),
        "<x-y>" * 300_000,
        "<table><tr><td>" * 10_000,
    ],
    ids=["nested", "not closed", "formatting", "unknown", "tables"],
)
def test_pages_that_nest_without_end_are_dropped(tmp_path: Path, method: str, hostile: str) -> None:
    (tmp_path / "a.html").write_text("<html><body>" + hostile)
    (dropped,) = read("html", tmp_path, extract=method)
    assert isinstance(dropped, Dropped)
    assert (dropped.rule, dropped.threshold) == ("max_page_depth", html.MAX_DEPTH)


@pytest.mark.parametrize("method", ["resiliparse", "trafilatura", "all_text"])
def test_many_elements_side_by_side_are_no_nesting(tmp_path: Path, method: str) -> None:
    rows = "".join(f"<li>Item {n} of a long list<p>with <b>bold</b> words<br>" for n in range(3000))
    (tmp_path / "a.html").write_text(f"<html><body><main><p>Words.</p><ol>{rows}</ol></main></body></html>")
    assert "Item 2999" in document(read("html", tmp_path, extract=method)).text


@pytest.mark.parametrize(
    "nest",
    ["<div></x>", "<rp>", "<ruby><rt></rt>", "<span><div></span>", "<svg><a>", "<b><table></b>", "<p><i id=1>"],
)
def test_nesting_that_hides_is_found(nest: str) -> None:
    """Each would take minutes to extract from."""
    assert html.page_depth(nest * 30_000) > html.MAX_DEPTH


@pytest.mark.parametrize(
    "flat",
    ["<svg><path d='m'/><path/></svg>", "<svg><path d='m'></svg>", "<ruby>a<rt>b</ruby>", "<div><i></div>", "<b></b>"],
)
def test_what_a_parser_closes_is_no_nesting(flat: str) -> None:
    assert html.page_depth(f"<main>{flat * 3000}</main>") < 10


def test_white_space_without_end_in_what_a_page_says_of_itself() -> None:
    """Patterns that look for it must not go over it again from each of its places."""
    assert html.decode_page(b"<meta charset=" + b" " * 60_000 + b"\xff")[0].startswith("<meta")
    assert html.canonical(("<link rel=canonical href=" + " " * 1900 + ">") * 30) is None


def test_odd_pages(tmp_path: Path) -> None:
    pages = {
        "empty": b"",
        "nul": b"\0<p>a\0b</p>",
        "half": b"<p>open <",
        "bom": "\ufeff<p>wörd</p>".encode("utf-16"),
        "no": b"\xff" * 99,
    }
    for name, content in pages.items():
        (tmp_path / f"{name}.html").write_bytes(content)
    found = {one.id: one.text for one in read("html", tmp_path)}
    assert len(found) == len(pages)
    assert "wörd" in found["bom.html"]


def test_a_page_too_large_to_be_parsed(tmp_path: Path) -> None:
    with open(tmp_path / "a.html", "wb") as handle:
        handle.truncate(200 << 20)
    assert drops(found := read("html", tmp_path)) == [("max_page_bytes", "a.html")]
    assert texts(found) == []

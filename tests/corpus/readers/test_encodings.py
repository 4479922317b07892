from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_reading import document, read, texts

from pipeline.corpus.readers.encoding import decode, repair
from pipeline.recipe import Corpus

SAID = {
    "cp1252": "Le café où nous étions déjà allés, naïve façade à côté de la forêt. " * 5,
    "koi8-r": "Привет, как дела? Сегодня хорошая погода и мы идём гулять в парк. " * 5,
    "cp1251": "Привет, как дела? Сегодня хорошая погода и мы идём гулять в парк. " * 5,
    "gb18030": "今天天气很好，我们去公园散步，看见了很多美丽的花。" * 5,
    "big5": "今天天氣很好，我們去公園散步，看見了很多美麗的花。" * 5,
    "shift_jis": "今日は天気がいいので、公園に散歩に行きました。" * 5,
    "euc_jp": "今日は天気がいいので、公園に散歩に行きました。" * 5,
    "cp949": "오늘은 날씨가 좋아서 공원에 산책하러 갔습니다. " * 5,
}


@pytest.mark.parametrize("encoding", SAID)
def test_an_encoding_is_found(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(SAID[encoding].encode(encoding))
    found = document(read("text", tmp_path))
    assert found.text == SAID[encoding]
    assert found.metadata["encoding"] == encoding


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("-be") else ""
    lines = ["one", "中文", "été \U0001f600", "\u202eشالوم", "e\u0301"]
    (tmp_path / "a.txt").write_bytes((mark + "\n".join(lines)).encode(encoding))
    assert document(read("text", tmp_path)).text == "\n".join(lines)
    for split_bytes in (7, 1000):
        assert texts(read("text", tmp_path, split="line", split_bytes=split_bytes)) == lines


def test_lines_are_read_in_the_encoding_of_their_file(tmp_path: Path) -> None:
    """Of a short line alone nothing could be told."""
    lines = [*SAID["koi8-r"].split(". "), "да", "нет"]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode("koi8-r"))
    for split_bytes in (100, 10_000):
        found = read("text", tmp_path, split="line", split_bytes=split_bytes)
        assert texts(found) == [line for line in lines if line]


def test_what_is_damaged_is_told() -> None:
    assert decode("où ça, là".encode() + b"\xc3") == ("où ça, là\ufffd", {"replaced": "1"})
    assert decode(b"\xef\xbb\xbfa\xff") == ("a\ufffd", {"replaced": "1"})
    assert decode(b"caf\xe9") == ("café", {"encoding": "cp1252"})
    assert decode("語".encode("iso-2022-jp"), "iso-2022-jp") == ("語", {"encoding": "iso2022_jp"})


@given(
    st.binary(max_size=300),
    st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["utf-16", "gb2312", "hz", "utf-7"])),
)
def test_any_bytes_are_some_text(content: bytes, declared: str | None) -> None:
    text, facts = decode(content, declared)
    assert all(isinstance(value, str) for value in facts.values())
    assert repair(text)[0] is not None


@given(st.text(max_size=200))
def test_utf8_is_read_bit_for_bit(text: str) -> None:
    content = text.encode("utf-8", "replace")
    if not content.startswith((b"\xef\xbb\xbf", b"\xff", b"\xfe")) and b"\x1b" not in content:
        assert decode(content, "iso-8859-1") == (content.decode(), {})


# --- repair --------------------------------------------------------------------------------------------------------


def test_mojibake_is_undone_line_by_line(tmp_path: Path) -> None:
    clean = [
        "L’été, naïve façade",
        "Ã is a letter of Portuguese: NÃO",
        "Привет, мир",
        "今天天气很好",
        "x² ± 5 µm",
        "«Â»",
    ]
    spoilt = ["L’été à la forêt".encode().decode("cp1252"), "Привет, как дела".encode().decode("latin-1")]
    (tmp_path / "a.txt").write_text("\n".join([clean[0], *spoilt, *clean[1:]]), encoding="utf-8")
    found = document(read("text", tmp_path))
    assert found.text == "\n".join([clean[0], "L’été à la forêt", "Привет, как дела", *clean[1:]])
    assert found.metadata == {"path": "a.txt", "repaired": "2"}
    found = document(read("text", tmp_path, Corpus(repair=False)))
    assert spoilt[0] in found.text and found.metadata == {"path": "a.txt"}


def test_clean_text_is_left_bit_for_bit() -> None:
    """Ligatures, full-width letters, controls, combining marks: none of it is ours to change."""
    text = "ﬁne ＡＢＣ e\u0301 \x07 &amp; “x” \u200f\u202e\r\n \t\x1b[31m" + "".join(SAID.values())
    assert repair(text) == (text, {})


def test_a_long_line_is_not_given_to_the_repair() -> None:
    text = "Ã©" * (1 << 20)
    assert repair(text) == (text, {})

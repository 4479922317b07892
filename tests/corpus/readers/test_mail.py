from __future__ import annotations

import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest
from source_reading import document, drops, read, texts

from pipeline.corpus.document import Dropped
from pipeline.corpus.readers import records


def message(words: str, charset: str = "utf-8", **kinds: str) -> EmailMessage:
    made = EmailMessage()
    made["Subject"], made["From"], made["To"] = "A subject", "Somebody <a@x.org>", "b@x.org"
    made.set_content(words, charset=charset, **kinds)
    return made


def test_an_mbox_as_the_standard_library_writes_it(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "list.mbox")
    said = ["Hello.\n\nFrom here on it is quoted.\n", "Où est-il ? " * 30 + "\n", "Привет\n", "\n"]
    for words, charset in zip(said, ["utf-8", "latin-1", "koi8-r", "utf-8"], strict=True):
        box.add(message(words, charset))
    box.close()
    found = read("mail", tmp_path)
    assert texts(found) == [words.strip("\n") for words in said]
    content = (tmp_path / "list.mbox").read_bytes()
    assert all(content[int(one.id.split("@")[1]) :].startswith(b"From ") for one in found)
    assert not any("x.org" in str(one) for one in found)  # headers hold addresses, which nothing would clean


def test_single_messages_and_their_parts(tmp_path: Path) -> None:
    both = message("The plain part.\n")
    both.add_alternative("<p>The page.</p>", subtype="html")
    both.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="x.png")
    (tmp_path / "1.eml").write_bytes(bytes(both))
    (tmp_path / "2.eml").write_bytes(
        bytes(message("<html><body><p>Only a <b>page</b>.</p></body></html>", subtype="html"))
    )
    attached = message("x")
    attached.clear_content()
    attached.add_attachment("a file of words", filename="x.txt")
    (tmp_path / "3.eml").write_bytes(bytes(attached))
    found = read("mail", tmp_path)
    assert texts(found) == ["The plain part.", "Only a page."]
    assert [one.id for one in found] == ["1.eml", "2.eml", "3.eml"]
    assert drops(found) == [("bad_record", "3.eml")]


def test_quotes_and_signatures(tmp_path: Path) -> None:
    words = "Yes.\n\nOn Monday, Somebody wrote:\n> Is it so?\n>> Was it?\n\nIt is.\n-- \nSomebody\nSome Firm\n"
    (tmp_path / "a.eml").write_bytes(bytes(message(words)))
    assert document(read("mail", tmp_path)).text == words.strip()
    assert document(read("mail", tmp_path, drop_quotes=True)).text == "Yes.\n\nIt is."


def test_charsets_that_are_wrong(tmp_path: Path) -> None:
    head = b"Content-Type: text/plain; charset=%s\nContent-Transfer-Encoding: 8bit\n\n"
    (tmp_path / "1.eml").write_bytes(
        head % b"utf-8" + "Où était-il déjà allé, l'été passé, à côté de la forêt ?".encode("cp1252")
    )
    (tmp_path / "2.eml").write_bytes(head % b"us-ascii" + "Où était-il ?".encode())
    (tmp_path / "3.eml").write_bytes(head % b"no-such-thing" + b"plain")
    assert texts(read("mail", tmp_path)) == [
        "Où était-il déjà allé, l'été passé, à côté de la forêt ?",
        "Où était-il ?",
        "plain",
    ]


def test_hostile_messages(tmp_path: Path) -> None:
    nested = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n) for n in range(5000))
    hostile = {
        "nested": nested,
        "base64": b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n" + b"!!!=" * 100,
        "page": b"Content-Type: text/html\n\n" + b"<div>" * 10_000,
        "header": b"Subject: " + b"=?utf-8?q?" * 10_000 + b"\n\nwords",
        "nothing": b"",
        "nul": b"\0\0\0",
    }
    for name, content in hostile.items():
        (tmp_path / f"{name}.eml").write_bytes(content)
    found = {one.id: one for one in read("mail", tmp_path)}
    assert isinstance(found["page.eml"], Dropped) and found["page.eml"].rule == "max_page_depth"
    assert found["header.eml"].text == "words"
    assert "nothing.eml" not in found


def test_a_text_that_begins_like_an_mbox_and_has_no_end(tmp_path: Path) -> None:
    """Whether its first line is an mbox's own is settled by the line's beginning."""
    (tmp_path / "a.eml").write_bytes(b"From " + b"a" * 5_000_000 + b"\n\nwords\n")
    (tmp_path / "b.eml").write_bytes(b"From a " + b"1" * 5_000_000 + b"\n\nwords\n")
    assert len(read("mail", tmp_path)) == 2


def test_a_message_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 300)
    box = [
        b"From a@x Mon May  1 10:00:00 2024\nSubject: x\n\n%s\n\n" % words for words in (b"one", b"w w\n" * 200, b"two")
    ]
    (tmp_path / "a.mbox").write_bytes(b"".join(box))
    found = read("mail", tmp_path)
    assert texts(found) == ["one", "two"]
    assert drops(found) == [("max_record_bytes", f"a.mbox@{len(box[0])}")]

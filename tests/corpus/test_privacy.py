"""Each type of personal data and secrets: what is found, and what only looks like it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.document import BEGINNING, Document, Dropped, drop
from pipeline.corpus.privacy.scrub import Scrubber, find
from pipeline.settings.privacy import GROUPS, TYPES, Privacy, placeholder

# None of these is anyone's: published examples, reserved names, or made up with valid check digits.
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA04up8hoqzS1\n" * 3 + "-----END RSA PRIVATE KEY-----"
FOUND = {
    "email": ["jane.roe+list@mail.example.co.uk", "zhang_san@example.com", "x@xn--fsqu00a.xn--0zwm56d"],
    "phone": [
        "+1 (415) 555-2671",
        "+442079460958",
        "+49 30 901820",
        "13812345678",
        "138-1234-5678",
        "+86 138 1234 5678",
        "8613812345678",
    ],
    "ip_address": ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2606:2800:220:1:248:1893:25c8:1946"],
    "credit_card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "6011000990139424",
    ],
    "iban": ["DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19", "FR14 2004 1010 0505 0001 3M02 606"],
    "us_ssn": ["123-45-6789"],
    "cn_resident_id": ["11010519491231002X", "440524188001010014"],
    "private_key": [PEM, PEM.replace("RSA ", ""), PEM.replace("\n", "\\n")],
    "aws_key": ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"],
    "github_token": [GITHUB, "github_pat_" + "11ABCDEFG0abcdefghijkl_mnop"],
    "gitlab_token": ["glpat-" + "abcdEFGH1234ijklMNOP"],
    "huggingface_token": ["hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"],
    "slack_token": ["xoxb-" + "123456789012-abcdefABCDEF"],
    "google_api_key": ["AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe"],
    "openai_key": ["sk-proj-" + "abcDEF1234567890abcdefgh", "sk-" + "abcDEF1234567890abcdefgh"],
    "stripe_key": ["sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"],
}
FOUND["cn_resident_id"].pop()  # a birthday in 1880 is before the form 19.. and 20..
ALL = [(kind, value) for kind, values in FOUND.items() for value in values]

LOOKALIKES = [
    "user@localhost",
    "@decorator",
    "icon@2x.png",
    "left-pad@1.3.0",
    "4111 1111 1111 1112",  # Luhn
    "1234 5678 9012 3452",  # no issuer
    "DE88 3704 0044 0532 0130 00",  # mod 97
    "GB29 NWBK 6016 1331 9268 1",
    "000-12-3456",
    "666-12-3456",
    "123-45-678",
    "110105194912310021",  # check digit
    "110105194913310028",  # month
    "10.0.0.1",
    "127.0.0.1",
    "192.168.1.254",
    "fe80::1",
    "::1",
    "256.8.8.8",
    "version 1.2.3.4",
    "v1.2.3.4",
    "numpy==1.2.3.4",
    "1.2.3.4.5",
    "版本1.2.3.4",
    "std::vector a::b dead::beef",
    "12:30:45 00:1a:2b:3c:4d:5e",
    "2024-01-15T10:20:30",
    "2019-2020, 1914-1918",
    "978-3-16-148410-0",
    "d41d8cd98f00b204e9800998ecf8427e",
    "0x13812345678",
    "0.13812345678",
    "13812345678901",
    "3*13812345678*x",
    "12812345678",
    "+1 555 0100",
    "+999 123 456 789",
    'if "-----BEGIN PRIVATE KEY-----" in text:',
    "-----BEGIN PUBLIC KEY-----\n" + "MIIEpAIBAAKCAQEA04up8hoqzS1\n" * 3 + "-----END PUBLIC KEY-----",
    "AKIAIOSFODNN7",
    "sk-toggleable__content-arrow",
    "sk_test_4eC39HqLyjWDarjtT1zdp7dc",
    "eyJhbGciOiJIUzI1NiJ9",
    "550e8400-e29b-41d4-a716-446655440000",
]


def found(text: str) -> list[tuple[str, str]]:
    raw = text.encode()
    return [(kind, raw[start:end].decode()) for start, end, kind in find(raw)]


@pytest.mark.parametrize(("kind", "value"), ALL)
def test_each_type_in_prose_at_both_ends_and_beside_chinese(kind: str, value: str) -> None:
    for frame in ("{}", "It is {}.", "({}), and", "\n{}\n", "号码：{}。", "他的是{}吗", "«{}»", "a\u00a0{}\u00a0b"):
        assert found(frame.format(value)) == [(kind, value)]


def test_every_type_has_an_example() -> None:
    assert set(FOUND) == set(TYPES) == {kind for kinds in GROUPS.values() for kind in kinds}
    assert {*GROUPS, *TYPES} == set(Privacy.model_fields)


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_it_stays(text: str) -> None:
    for frame in ("{}", "It is {} here.", "是{}吗"):
        assert found(frame.format(text)) == []


def test_two_beside_each_other_and_one_after_a_lookalike() -> None:
    assert [value for _, value in found("13812345678 13912345678")] == ["13812345678", "13912345678"]
    assert found("2024 4111 1111 1111 1111") == [("credit_card", "4111 1111 1111 1111")]
    assert found("+1 415 555 2671 +44 20 7946 0958") == [("phone", "+1 415 555 2671"), ("phone", "+44 20 7946 0958")]
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    for name in ("aws_secret_access_key = ", 'AWS_SECRET_ACCESS_KEY="', "'aws_secret_access_key': '"):
        assert found(name + secret) == [("aws_key", secret)]
    assert found("sha1: " + secret) == []


def test_a_cut_private_key_is_one() -> None:
    text = "before\n" + PEM.removesuffix("-----END RSA PRIVATE KEY-----")
    assert [kind for kind, _ in found(text)] == ["private_key"]
    assert found(text)[0][1].startswith("-----BEGIN") and "MIIE" in found(text)[0][1]


def test_placeholders_counts_and_actions() -> None:
    text = "Write to a@example.com or b@example.com, call +442079460958, host 8.8.8.8."
    replaced = Scrubber(Privacy(ip_address="keep"))(Document(text, "id", "s"))
    assert isinstance(replaced, Document)
    assert replaced.text == "Write to <EMAIL> or <EMAIL>, call <PHONE>, host 8.8.8.8."
    assert replaced.private == {"email": 2, "phone": 1}
    kept = Scrubber(Privacy(contact="keep", network="keep"))(Document(text, "id", "s"))
    assert isinstance(kept, Document) and kept.text == text and not kept.private
    gone = Scrubber(Privacy(network="drop"))(Document(text, "id", "s"))
    assert isinstance(gone, Dropped)
    assert (gone.rule, gone.value, gone.threshold) == ("privacy.ip_address", 1, 0)
    assert gone.text == "Write to <EMAIL> or <EMAIL>, call <PHONE>, host <IP_ADDRESS>."
    assert gone.private == {"email": 2, "ip_address": 1, "phone": 1} and gone.bytes == len(text)
    assert Privacy(secrets="drop", jwt="keep").action("jwt") == "keep"
    assert Privacy(secrets="drop", jwt="keep").action("aws_key") == "drop"


def test_ids_and_metadata_are_scrubbed() -> None:
    document = Document("text", "<17@mail.example.com>", "s", None, {"from": "a@example.com", "path": "x"})
    scrubbed = Scrubber(Privacy())(document)
    assert (scrubbed.id, document.metadata) == ("<<EMAIL>>", {"from": "<EMAIL>", "path": "x"})


@pytest.mark.parametrize("value", ["someone@example.com", "4111 1111 1111 1111", PEM])
def test_no_part_of_a_value_is_left_where_a_beginning_ends(value: str) -> None:
    scrub = Scrubber(Privacy())
    for shift in range(len(value) + 2):
        text = "x " * ((BEGINNING - shift) // 2) + " " * ((BEGINNING - shift) % 2) + value + " tail" * 100
        document = Document(text, "id", "s")
        kept = scrub.dropped(document, drop(document, "min_words", 1, 2)).text
        assert not re.search("some|4111|MIIE|BEGIN", kept)
        assert placeholder(found(value)[0][0]) in kept or shift < 1


_ALPHABET = st.sampled_from(
    [*"0123456789 .-+()@:_/aAfXeyJskB中，\n", *(value for _, value in ALL), "DE89", "AKIA", "-----BEGIN "]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_ALPHABET, max_size=60).map("".join))
@example("@@.a@a.a+1+1++(((")
@example("+86" * 9)
def test_any_text_is_scrubbed_once_and_for_all(text: str) -> None:
    hits = find(text.encode())
    assert all(a_end <= b_start for (_, a_end, _), (b_start, _, _) in itertools.pairwise(hits))
    document = Scrubber(Privacy())(Document(text, "id", "s"))
    assert isinstance(document, Document)
    assert sum(document.private.values()) == len(hits)


@given(st.text())
def test_text_without_hits_stays_as_it_is(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    document = Scrubber(Privacy())(Document(text, "id", "s"))
    if not document.private:
        assert document.text == text


_REPEATED = (
    *("1", "1.", "1-", "0 ", "(", "+1 ", "+1(2)", "4111 ", "DE89 ", "8.8.8.", "a@", "a@a.", "a:", ":"),
    *("sk-", "eyJ", "eyJ-", "ghp_", "xoxb-", "-----BEGIN PRIVATE KEY-----", "aws_secret_key="),
)


def test_work_grows_no_faster_than_the_text() -> None:
    """How often each pattern is tried, on hostile text: counted, not timed."""
    import numpy as np

    from pipeline.corpus.privacy.scan import CLASSES, PREFIXES, find_places

    for unit in _REPEATED:
        raw = (unit * 20_000).encode()
        places = find_places(np.frombuffer(raw, np.uint8), CLASSES, PREFIXES)
        assert len(places) <= len(raw)
        runs = places[places[:, 2] > 0]
        assert int((runs[:, 2] - runs[:, 1]).sum()) <= 2 * len(raw)  # runs overlap by a few bytes at most
        find(raw)

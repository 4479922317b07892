"""Telephone, card, account, identity numbers and network addresses: a strict form first, then check digits and plans.

A number is bounded by what is no ASCII letter, digit or underscore, so that Chinese characters may stand right beside
it; a digit beyond a dot or dash makes it part of something longer (a version, a decimal, an identifier).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from pipeline.corpus.privacy.scan import CARD_DIGITS, ID_DIGITS, PHONE_DIGITS, PLUS, THREE_DOTS, TWO_DASHES

Hit = tuple[int, int, str]  # first byte, one past the last, type

_BEFORE = rb"(?<![0-9A-Za-z_])(?<![0-9][-.])"
_AFTER = rb"(?![0-9A-Za-z_])(?![-.][0-9])(?! ?[*^%]{1,2}[0-9A-Za-z(])"  # nor a factor or power
_FORMS: tuple[tuple[int, str, bytes], ...] = (  # what a run must have to be worth a try (scan.py), type, form
    (ID_DIGITS, "cn_resident_id", rb"[1-9]\d{5}(?:19|20)\d{9}[\dXx]" + _AFTER),
    (
        THREE_DOTS,
        "ip_address",
        rb"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)" + _AFTER,
    ),
    (
        CARD_DIGITS,
        "credit_card",
        rb"(?:3[47]\d\d([ -])\d{6}\1\d{5}|[2-6]\d{3}([ -])\d{4}\2\d{4}\2\d{4}(?:\2\d{3})?|[3-6]\d{12,18}|"
        rb"2[2-7]\d{14})" + _AFTER,
    ),
    (TWO_DASHES, "us_ssn", rb"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}" + _AFTER),
    (
        PHONE_DIGITS,
        "phone",
        rb"(?:(?:\+|00)86[ -]?|\(\+86\) ?|86[ -]?)?1[3-9]\d([ -]?)\d{4}\1\d{4}" + _AFTER,
    ),
)
_NUMBERS = [(needs, kind, re.compile(_BEFORE + form)) for needs, kind, form in _FORMS]
_ABROAD = re.compile(rb"(?<![0-9A-Za-z_+])\+[1-9]\d{0,3}(?:[ .-]{0,2}\(?\d{1,6}\)?){1,8}(?![0-9A-Za-z_])")
_VERSION = re.compile(
    (
        r"(?:(?:\bv|version|ver|rev|revision|release|build|firmware|section|chapter|clause|oid)\.?:? ?|[=~><!]= ?|"
        r"版本(?:号)?(?::|：)? ?|第 ?)$"
    ).encode(),
    re.IGNORECASE,
)
_VERSION_BEFORE = 16  # bytes looked at for such a word
_IBAN = re.compile(rb"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?")
_IBAN_LENGTHS = {  # of the IBAN registry (ISO 13616)
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_SPACE = 0x20
_UNICAST = ipaddress.IPv6Network("2000::/3")
_ISSUERS = re.compile(  # Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay, Maestro
    rb"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    rb"6(?:011|4[4-9]\d|5\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}|"
    rb"(?:50|5[6-9]|6[37])\d{14,17}"
)


def in_run(raw: bytes, start: int, end: int, traits: int) -> Iterator[Hit]:
    """Numbers within a run of digits and marks, `start` to `end`; of different types they may overlap."""
    for needs, kind, pattern in _NUMBERS:
        if not traits & needs:
            continue
        # A few bytes more than the run: for what must not follow, and for the X of a resident's number.
        place, stop = start, min(end + 3, len(raw))
        while match := pattern.search(raw, place, stop):
            low, high = match.span()
            place = low + 1  # a form that does not hold may overlap one that does
            if _holds(kind, raw, low, match.group()):
                place = high
                yield low, high, kind
    if traits & PLUS:
        for match in _ABROAD.finditer(raw, start, min(end + 1, len(raw))):
            if length := _dialled(match.group()):
                yield match.start(), match.start() + length, "phone"


def _holds(kind: str, raw: bytes, low: int, value: bytes) -> bool:
    """Whether what has a number's form is one."""
    text = value.decode("ascii")
    if kind == "cn_resident_id":
        from stdnum.cn import ric

        return bool(ric.is_valid(text.upper()))
    if kind == "ip_address":
        if _VERSION.search(raw, max(0, low - _VERSION_BEFORE), low):
            return False
        return ipaddress.IPv4Address(text).is_global
    if kind == "credit_card":
        from stdnum import luhn

        digits = re.sub(r"\D", "", text)
        return bool(_ISSUERS.fullmatch(digits.encode()) and len(set(digits)) > 1 and luhn.is_valid(digits))
    if kind == "phone":
        digits = re.sub(r"\D", "", text)
        return _valid_phone("+86" + digits[-11:])
    return True


def _dialled(value: bytes) -> int:
    """How many bytes of a number with a country's code are valid: all, or up to one of its gaps; 0: none."""
    text = value.decode("ascii").rstrip()
    if text.count(")") > text.count("("):
        text = text.removesuffix(")")
    while sum(map(str.isdigit, text)) >= 8:
        digits = re.sub(r"\D", "", text)
        if len(digits) <= 15 and text.count("(") == text.count(")") and _valid_phone("+" + digits):
            return len(text)
        shorter = re.sub(r"[ .()-]+\d+\)?$", "", text)
        if shorter == text:
            return 0
        text = shorter
    return 0


def _valid_phone(number: str) -> bool:
    """Whether the numbering plan of the number's country has it. number: `+` and digits."""
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number)))
    except phonenumbers.NumberParseException:
        return False


def iban_at(raw: bytes, start: int) -> Iterator[Hit]:
    """A bank account that begins here: as long as its country has them, with valid check digits (ISO 7064, mod 97)."""
    match = _IBAN.match(raw, start)
    length = _IBAN_LENGTHS.get(raw[start : start + 2].decode("ascii"))
    if match is None or length is None:
        return
    value = match.group().decode("ascii")
    digits = value.replace(" ", "")[:length]
    if len(digits) < length or int("".join(str(int(one, 36)) for one in digits[4:] + digits[:4])) % 97 != 1:
        return
    end = start
    while length:
        length -= raw[end] != _SPACE
        end += 1
    if end == len(raw) or not (raw[end : end + 1].isalnum() or raw[end : end + 1] == b"_"):
        yield start, end, "iban"


def ipv6_at(raw: bytes, start: int, end: int) -> Iterator[Hit]:
    """The public IPv6 address that a run of hexadecimal digits and colons is."""
    text = raw[start:end].decode("ascii")
    for value in (text, text.removesuffix(":")):
        try:
            address = ipaddress.IPv6Address(value)
        except ValueError:
            continue
        if address in _UNICAST and address.is_global:
            yield start, start + len(value), "ip_address"
        return

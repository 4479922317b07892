"""E-mail addresses, keys and tokens: what has a form of its own and needs no check digits.

The forms of tokens are those that the services publish for secret scanning. Each pattern is tried at one place, with
bounded repetition, so that no text makes it slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.corpus.privacy.numbers import Hit

_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rb"[A-Za-z0-9._%+-]{1,64}@(?:" + _LABEL + rb"\.){1,8}(?!(?:png|jpe?g|gif|svg|webp|css|js|html?|py|rb|so|whl|zip)\b)"
    rb"(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})(?![A-Za-z0-9_@])"
)

_END = rb"(?![A-Za-z0-9_-])"
_TOKENS = (
    ("aws_key", rb"(?:AKIA|ASIA)[A-Z0-9]{16}" + _END),
    ("github_token", rb"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})" + _END),
    ("gitlab_token", rb"glpat-[A-Za-z0-9_-]{20,64}" + _END),
    ("huggingface_token", rb"hf_[A-Za-z0-9]{34,64}" + _END),
    ("slack_token", rb"xox[abeoprs]-[A-Za-z0-9-]{10,250}" + _END),
    ("google_api_key", rb"AIza[A-Za-z0-9_-]{35}" + _END),
    ("stripe_key", rb"[rs]k_live_[A-Za-z0-9]{16,247}" + _END),
    ("openai_key", rb"sk-(?=[a-z0-9-]{0,60}[A-Z])(?=[A-Za-z-]{0,60}[0-9])[A-Za-z0-9_-]{20,250}" + _END),
)
_KINDS = tuple(kind for kind, _ in _TOKENS)
_TOKEN = re.compile(b"|".join(b"(" + form + b")" for _, form in _TOKENS))
_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{8,2048}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,1024}" + _END)
_AWS_SECRET = re.compile(
    rb"aws_secret(?:_access)?_key[\"']?[ \t]{0,8}(?:=>|[=:])[ \t]{0,8}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    re.IGNORECASE,
)
_HEADER = re.compile(rb"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_FOOTER = re.compile(rb"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BYTES = 1 << 14  # the longest block
_BODY = re.compile(rb"[A-Za-z0-9+/=]{20}")
_UNENDED = re.compile(rb"(?:(?:\\n|[\s\"',>|*#+]){0,16}[A-Za-z0-9+/=]{20,128})+")


def email_at(raw: bytes, start: int) -> Iterator[Hit]:
    """An e-mail address whose local part begins here."""
    while start < len(raw) and raw[start] in b".%+-":  # marks before it belong to the text
        start += 1
    if match := _EMAIL.match(raw, start):
        yield *match.span(), "email"


def token_at(raw: bytes, start: int) -> Iterator[Hit]:
    """A service's token that begins here."""
    if match := _TOKEN.match(raw, start):
        assert match.lastindex is not None
        yield *match.span(), _KINDS[match.lastindex - 1]


def jwt_at(raw: bytes, start: int) -> Iterator[Hit]:
    """A JSON web token (RFC 7519) that begins here."""
    if match := _JWT.match(raw, start):
        yield *match.span(), "jwt"


def aws_secret_at(raw: bytes, start: int) -> Iterator[Hit]:
    """The value that is assigned to the name which begins here."""
    if match := _AWS_SECRET.match(raw, start):
        yield *match.span(1), "aws_key"


def private_key_at(raw: bytes, start: int) -> Iterator[Hit]:
    """A private key that begins here, to its end, or to where it is cut; a header without a key is none."""
    header = _HEADER.match(raw, start)
    if header is None:
        return
    inside = header.end()
    if footer := _FOOTER.search(raw, inside, inside + _KEY_BYTES):
        if _BODY.search(raw, inside, footer.start()):
            yield start, footer.end(), "private_key"
    elif cut := _UNENDED.match(raw, inside):
        yield start, cut.end(), "private_key"

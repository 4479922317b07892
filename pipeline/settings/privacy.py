"""The `corpus.privacy:` section of a recipe: personal data and secrets, what is done with each type.

`privacy: standard` switches it on with the defaults. A type that the recipe does not name follows its group.
"""

from __future__ import annotations

from typing import Literal

from pipeline.settings.section import Section

Action = Literal["replace", "drop", "keep"]

GROUPS: dict[str, tuple[str, ...]] = {
    "contact": ("email", "phone"),
    "network": ("ip_address",),
    "financial": ("credit_card", "iban"),
    "identity": ("us_ssn", "cn_resident_id"),
    "secrets": (
        "private_key",
        "aws_key",
        "github_token",
        "gitlab_token",
        "huggingface_token",
        "slack_token",
        "google_api_key",
        "openai_key",
        "stripe_key",
        "jwt",
    ),
}
GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
TYPES = tuple(GROUP_OF)


def placeholder(kind: str) -> str:
    """What stands in a text where a value was replaced: `<EMAIL>`, `<CREDIT_CARD>`; it never changes."""
    return f"<{kind.upper()}>"


class Privacy(Section):
    """`replace` by a placeholder, `drop` the document, or `keep`; by group, or by type, which goes before its group."""

    contact: Action = "replace"
    network: Action = "replace"
    financial: Action = "replace"
    identity: Action = "replace"
    secrets: Action = "replace"

    email: Action | None = None
    phone: Action | None = None
    """With a `+` and a country's code, and Chinese mobile numbers without; numbers that the plan of the country has."""
    ip_address: Action | None = None
    """IPv4 and IPv6; public addresses only."""
    credit_card: Action | None = None
    """13 to 19 digits with the prefix of an issuer and a valid check digit (Luhn)."""
    iban: Action | None = None
    """Bank accounts with valid check digits (mod 97)."""
    us_ssn: Action | None = None
    """US social security numbers, as 123-45-6789."""
    cn_resident_id: Action | None = None
    """Chinese resident identity numbers, 18 digits with valid region, birthday and check digit (GB 11643)."""
    private_key: Action | None = None
    """PEM and PGP blocks."""
    aws_key: Action | None = None
    """Access key ids; and secret access keys where they are assigned to a name that says so."""
    github_token: Action | None = None
    gitlab_token: Action | None = None
    huggingface_token: Action | None = None
    slack_token: Action | None = None
    google_api_key: Action | None = None
    openai_key: Action | None = None
    """`sk-…`; Anthropic's are of the same form."""
    stripe_key: Action | None = None
    jwt: Action | None = None

    def action(self, kind: str) -> Action:
        """What is done with a type."""
        own: Action | None = getattr(self, kind)
        chosen: Action = own if own is not None else getattr(self, GROUP_OF[kind])
        return chosen

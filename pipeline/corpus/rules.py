"""Quality rules: a signal of a document against a threshold of the recipe.

A rule is a threshold in settings/rules.py, `min_…` or `max_…`, on a signal of signals.py; the thresholds stand there
with the papers that they come from. A document meets the recipe's single rules, then the language rule, then the sets
in the order of SETS; C4 and RefinedWeb first take lines out, and FineWeb judges what is left. The first rule broken
drops it, under the rule's name in the recipe: `min_words`, `gopher_quality.min_words`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipeline.corpus.document import Document, Dropped, drop
from pipeline.corpus.languages import UNKNOWN, Language, identify, known_codes, read_languages, set_model
from pipeline.corpus.signals import PLAIN_SIGNALS, SIGNALS, Signals, json_of
from pipeline.corpus.word_lists import BadWords, BlockedUrls
from pipeline.errors import RecipeError
from pipeline.settings.rules import C4, SETS, RefinedWeb, Rules

# Which signal each threshold of the recipe bounds; its direction is in its name.
PLAIN: dict[str, str] = {
    "max_characters": "characters",  # first: what is measured after it is bounded by it
    "min_characters": "weighed_characters",
    "max_replacement_characters": "replacement_characters",
    "min_alphanumeric": "alphanumeric",
    "min_words": "word_count",
    "max_words": "word_count",
    "mean_word_length": "mean_word_length",
    "max_line_length": "longest_line",
    "max_symbol_to_word_ratio": "symbol_to_word_ratio",
    "min_alphabetic_words": "alphabetic_word_share",
    "max_duplicate_lines": "repeated_line_share",
}
PUBLISHED: dict[str, dict[str, str]] = {
    "code": {
        "max_mean_line": "mean_line",
        "max_line": "longest_line",
        "min_alphanumeric": "alphanumeric",
        "max_generated_markers": "generated_markers",
        "min_white_space": "white_space",
    },
    "gopher_repetition": {
        "max_duplicate_paragraphs": "duplicate_paragraphs",
        "max_duplicate_paragraph_characters": "duplicate_paragraph_characters",
        "max_duplicate_lines": "duplicate_lines",
        "max_duplicate_line_characters": "duplicate_line_characters",
        **{f"max_top_{length}_gram": f"top_{length}_gram" for length in (2, 3, 4)},
        **{f"max_duplicate_{length}_grams": f"duplicate_{length}_grams" for length in (5, 6, 7, 8, 9, 10)},
    },
    "gopher_quality": {
        "min_words": "words",
        "max_words": "words",
        "min_word_length": "word_length",
        "max_word_length": "word_length",
        "max_hashes": "hashes",
        "max_ellipses": "ellipses",
        "max_bullet_lines": "bullet_lines",
        "max_ellipsis_lines": "ellipsis_lines",
        "min_alphabetic_words": "alphabetic_words",
        "min_stop_words": "stop_words",
    },
    "c4": {"max_lorem_ipsum": "lorem_ipsum", "max_curly_brackets": "curly_brackets", "min_sentences": "sentences"},
    "refinedweb": {"max_removed_words": "removed_words"},
    "fineweb": {
        "min_line_ends": "line_ends",
        "max_short_lines": "short_lines",
        "max_duplicate_line_characters": "duplicate_solid_line_characters",
        "max_newlines": "newlines",
    },
}


@dataclass(frozen=True)
class Rule:
    """A signal with its bounds; a document outside them is dropped.

    name: its key under `corpus.rules`. low, high: the smallest and largest value that passes; None: no bound.
    Raises: KeyError when there is no such signal.
    """

    name: str
    signal: str
    low: float | int | None = None
    high: float | int | None = None

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise KeyError(f"rule {self.name}: there is no signal '{self.signal}'")

    def broken_by(self, signals: Signals) -> tuple[float | int, float | int] | None:
        """(value, threshold) when the document breaks the rule, else None."""
        value = signals[self.signal]
        if self.low is not None and value < self.low:
            return value, self.low
        if self.high is not None and value > self.high:
            return value, self.high
        return None


@dataclass(frozen=True)
class RuleSet:
    """A published set, with the thresholds that hold for one language. settings: for the sets that take lines out."""

    name: str
    rules: tuple[Rule, ...]
    settings: BaseModel


def _rule(name: str, signal: str, key: str, bound: Any) -> Rule | None:
    if bound is None:
        return None
    if isinstance(bound, tuple):
        return Rule(name, signal, *bound)
    return Rule(name, signal, low=bound) if key.startswith("min_") else Rule(name, signal, high=bound)


@dataclass(frozen=True)
class Known:
    """Signals of a document that were worked out before. values: of its text as it came. counted_with: the
    fingerprint of what its language's words and stop words were then. identified: language and score, where the source
    states none."""

    values: dict[str, float | int]
    counted_with: str
    identified: tuple[str, float] | None


class Judge:
    """All rules of a recipe, ready to judge documents. Use as a function.

    Raises: RecipeError when a language file or a list cannot be read, or a language is unknown.
    """

    def __init__(
        self, settings: Rules, languages: Mapping[str, float | None] | None = None, write_signals: bool = False
    ) -> None:
        self._settings = settings
        self._write_signals = write_signals
        self._plain = build_rules(settings)
        self._languages = read_languages(settings.language_files)
        self._allowed = dict(languages or {})
        for code in self._allowed:
            if code not in self._languages and code not in known_codes():
                raise RecipeError(f"corpus.languages: '{code}' is no language that can be identified")
        self._sets: dict[str, tuple[RuleSet, ...]] = {}
        self._any_set = any(getattr(settings, name) is not None for name in SETS)
        lists = settings.lists
        self._blocked = BlockedUrls(lists.blocked_urls) if lists and lists.blocked_urls else None
        self._bad_words = BadWords(lists.bad_words) if lists and lists.bad_words else None

    def measure(self, document: Document) -> Known:
        """All signals of a document as it came to the rules; in the language that it is identified as."""
        signals = Signals(document.text)
        identified = None if document.language is not None else identify(document.text)
        signals.language = self._language_of(identified[0] if identified else document.language, signals)
        return Known(signals.every(), signals.language.counted_with, identified)

    def __call__(self, document: Document, known: Known | None = None) -> Document | Dropped:
        """The document, with lines taken out where a set does that, or what is left of it when it breaks a rule.

        `signals`, where they are written, are a JSON list: of the text as it came, then of what was left each time
        lines went. Of a document that a single rule drops only those that were needed: it may be of any size.
        known: its signals, where they were kept.
        """
        signals = Signals(document.text)
        if known is not None:
            signals.values |= {name: known.values[name] for name in PLAIN_SIGNALS}
        judged = self._judge(document, signals, known)
        if not self._write_signals:
            return judged
        if isinstance(judged, Dropped):
            single = judged.rule == "empty" or judged.rule in PLAIN
            judged.signals = json_of(signals, all_of_them=not single)
        else:
            judged.metadata["signals"] = json_of(signals, all_of_them=True)
        return judged

    def _judge(self, document: Document, signals: Signals, known: Known | None) -> Document | Dropped:
        if (gone := _judged(document, self._plain, signals)) is not None:
            return gone
        if self._allowed and document.language is None:
            identified = known.identified if known is not None else None
            if (gone := self._identified(document, identified or identify(document.text))) is not None:
                return gone
        if not self._any_set and not self._write_signals:
            return document
        signals.language = self._language_of(document.language, signals)
        if known is not None and known.counted_with == signals.language.counted_with:
            signals.values |= known.values
        if (gone := self._listed(document)) is not None:
            return gone
        for rule_set in self._sets_for(signals.language):
            signals = _edited(rule_set, signals)
            if (gone := _judged(document, rule_set.rules, signals)) is not None:
                return gone
        document.text = signals.text
        return document if document.text else drop(document, "empty", 0, 1)

    def _identified(self, document: Document, identified: tuple[str, float]) -> Dropped | None:
        """Write the document's language and score beside it; what is left of one whose language is not wanted."""
        code, score = identified
        known = self._languages.get(code)
        allowed = next((name for name in self._allowed if name == code or (known and name == known.code)), None)
        if allowed is None:
            document.language = known.code if known else code
            return drop(document, "language", f"{code} {score:.3f}", " ".join(self._allowed))
        least = self._allowed[allowed]
        if least is None:
            least = (known or UNKNOWN).least_score
        document.language = known.code if known else code
        if score < least:
            return drop(document, "language", f"{code} {score:.3f}", least)
        document.metadata["language_score"] = f"{score:.3f}"
        return None

    def _language_of(self, code: str | None, signals: Signals) -> Language:
        """As stated or identified; else by script: Chinese where Han prevails, else English."""
        if code is not None:
            return self._languages.get(code, UNKNOWN)
        return self._languages["zh" if signals.mostly_han else "en"]

    def _sets_for(self, language: Language) -> tuple[RuleSet, ...]:
        if language.code not in self._sets:
            self._sets[language.code] = tuple(build_sets(self._settings, language))
        return self._sets[language.code]

    def _listed(self, document: Document) -> Dropped | None:
        lists = self._settings.lists
        if lists is None:
            return None
        if self._blocked and (entry := self._blocked.entry_of(document.metadata.get("url", ""))) is not None:
            return drop(document, "lists.blocked_urls", entry, None)
        if self._bad_words and lists.max_bad_words is not None:
            found = self._bad_words.count(document.text)
            if found > lists.max_bad_words:
                return drop(document, "lists.max_bad_words", found, lists.max_bad_words)
        return None


def _judged(document: Document, rules: tuple[Rule, ...], signals: Signals) -> Dropped | None:
    for rule in rules:
        if (broken := rule.broken_by(signals)) is not None:
            value, threshold = broken
            return drop(document, rule.name, value if isinstance(value, int) else round(value, 6), threshold)
    return None


def _edited(rule_set: RuleSet, signals: Signals) -> Signals:
    """The signals of the text that a set leaves; the same where it takes no lines out."""
    settings = rule_set.settings
    if not isinstance(settings, (C4, RefinedWeb)):
        return signals
    from pipeline.corpus.lines import c4_lines, refinedweb_lines

    if isinstance(settings, C4):
        text, edits = c4_lines(signals.text, settings, signals.language)
    else:
        text, edits = refinedweb_lines(signals.text, settings)
    if text != signals.text:
        signals.edited = Signals(text, signals.language)
        signals = signals.edited
    signals.values |= edits
    return signals


def rule_names() -> tuple[str, ...]:
    """Every rule that this module can drop a document by, as in a recipe, in the order in which one meets them."""
    sets = (f"{name}.{key}" for name, signals in PUBLISHED.items() for key in signals)
    return ("empty", *PLAIN, "language", "lists.blocked_urls", "lists.max_bad_words", *sets)


def build_rules(settings: Rules) -> tuple[Rule, ...]:
    """The single rules that a recipe switches on, cheapest first; an empty text breaks the first in any recipe."""
    rules = [_rule(key, signal, key, getattr(settings, key)) for key, signal in PLAIN.items()]
    return (Rule("empty", "solid_characters", low=1), *(rule for rule in rules if rule is not None))


def build_sets(settings: Rules, language: Language) -> list[RuleSet]:
    """The sets that a recipe switches on, for one language.

    A threshold which the recipe leaves at its default is the language's own, where its file has one; rules on stop
    words are off for a language without them.
    """
    found = []
    for name, signals in PUBLISHED.items():
        chosen = getattr(settings, name)
        if chosen is None:
            continue
        default = set_model(name)()
        own = language.thresholds.get(name, {})
        if own is None and chosen == default:
            continue
        for key, value in (own or {}).items():
            if getattr(chosen, key) == getattr(default, key):
                chosen = chosen.model_copy(update={key: value})
        if name == "gopher_quality" and not language.stop_words:
            chosen = chosen.model_copy(update={"min_stop_words": None})
        rules = [_rule(f"{name}.{key}", signal, key, getattr(chosen, key)) for key, signal in signals.items()]
        found.append(RuleSet(name, tuple(rule for rule in rules if rule is not None), chosen))
    return found

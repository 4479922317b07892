"""Published rule sets: every threshold on both sides, what the languages change, lines taken out, lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small_corpora import PROSE

from pipeline.config import load_recipe
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.languages import read_languages, set_model
from pipeline.corpus.rules import PLAIN, PUBLISHED, Judge, Rule, build_sets
from pipeline.corpus.signals import SIGNALS
from pipeline.errors import RecipeError
from pipeline.recipe import Rules
from pipeline.settings.rules import SETS

OFF: dict[str, Any] = dict.fromkeys(PLAIN)
MIXED = "# Notes...\n\n- The river rises in the hills, and boats go to the mill. The river rises in the hills.\n" * 3
CHINESE = (
    "我们今天在北京的大学里学习中文，老师给我们讲了很多有意思的故事。他说，这本书是去年写的，也是最近几年里最好的一本！\n"
    "城市的东边有一条河，春天的时候水很高，人们可以坐船到旧的磨坊；到了八月，河里几乎就没有水了，只有石头和沙子。\n"
    "我的朋友住在山上的村子里，每个星期六他都会走路到镇上去买东西，然后和认识的人在茶馆里坐一会儿，谈谈家里的事情。\n"
)
ENGLISH = (
    "The river rises in the hills above the town and runs for forty miles before it meets the sea. In spring the\n"
    "water is high, and boats go as far as the old mill; by August there is hardly any. Most people that live there\n"
    "have their gardens on the south side, with apple trees and a low wall of grey stone to keep the sheep out.\n"
    "Every Saturday a market is held in the square. It has been so since before anyone can remember!\n"
    "Does the bridge still stand? It was built to last, they say, though nobody now knows who paid for it.\n"
)


def judged(text: str, language: str | None = "en", url: str = "", **rules: Any) -> Document | Dropped:
    document = Document(text, "id", "source", language, {"url": url} if url else {})
    return Judge(Rules(**OFF | rules))(document)


def rule_of(result: Document | Dropped) -> str:
    return result.rule if isinstance(result, Dropped) else "kept"


THRESHOLDS = [
    (name, key, signal)
    for name, signals in PUBLISHED.items()
    for key, signal in signals.items()
    if key not in ("max_lorem_ipsum", "max_generated_markers")  # whole numbers that must not fall below 0; see below
]


@pytest.mark.parametrize(("name", "key", "signal"), THRESHOLDS, ids=str)
def test_each_threshold_on_both_sides(name: str, key: str, signal: str) -> None:
    """The document passes where the threshold is its own value, and is dropped by that rule beyond it."""
    text = "SIGN IN\n" + MIXED.replace("# Notes", "# Notes {") + ENGLISH
    off: dict[str, Any] = dict.fromkeys(PUBLISHED[name])
    lenient = off | {"end_punctuation": False, "min_line_words": None} if name == "c4" else off
    whole = key in ("max_line", "max_mean_line", "min_words", "max_words", "min_stop_words", "min_sentences")
    beyond: dict[str, Any] = {key: 10_000 if key.startswith("min_") and whole else 1.0}
    if key == "min_word_length":
        beyond = {key: 99.0}
    if key.startswith("max_"):
        beyond = {key: 1 if whole else 0}
    dropped = judged(text, **{name: lenient | beyond})
    assert isinstance(dropped, Dropped), f"{key} never fires"
    assert dropped.rule == f"{name}.{key}"
    assert isinstance(dropped.value, (int, float))
    assert dropped.threshold == beyond[key]
    margin = 0 if isinstance(dropped.value, int) else 1e-6
    at = dropped.value + margin if key.startswith("max_") else max(dropped.value - margin, 0)
    if whole and not isinstance(at, int):
        at = int(at) + 1
    assert rule_of(judged(text, **{name: lenient | {key: at}})) == "kept"


def test_the_two_that_count_from_none() -> None:
    assert rule_of(judged(ENGLISH + "Here is some Lorem ipsum for now.\n", sets=["c4"])) == "c4.max_lorem_ipsum"
    code = "# Automatically generated, do not edit\nimport os\nprint(os.name)\n"
    assert rule_of(judged(code, "code", sets=["code"])) == "code.max_generated_markers"
    assert rule_of(judged("\n" * 6 + code, "code", sets=["code"])) == "kept"  # only the first lines are looked at


def test_defaults_are_those_published() -> None:
    quality, repetition, fineweb = (set_model(name)() for name in ("gopher_quality", "gopher_repetition", "fineweb"))
    assert [*quality.model_dump().values()] == [50, 100_000, 3, 10, 0.1, 0.1, 0.9, 0.3, 0.8, 2]
    grams = [0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert [*repetition.model_dump().values()] == [0.30, 0.20, 0.30, 0.20, *grams]
    assert [*fineweb.model_dump().values()] == [0.12, 0.67, 0.01, 0.3]


def test_good_prose_passes_every_set() -> None:
    sets = [name for name in SETS if name not in ("lists", "code")]
    for text, language in ((ENGLISH, "en"), (CHINESE, "zh"), (ENGLISH, None), (CHINESE, None)):
        assert rule_of(judged(text, language, sets=sets)) == "kept"


def test_english_rules_would_throw_chinese_away() -> None:
    assert rule_of(judged(CHINESE, "en", sets=["gopher_quality"])) == "gopher_quality.min_words"


def test_every_rule_bounds_a_signal_and_every_threshold_is_a_rule() -> None:
    for name, signals in PUBLISHED.items():
        assert {*signals.values()} <= {*SIGNALS}
        numbers = {key for key in set_model(name).model_fields if key.startswith(("min_", "max_"))}
        lines = {"c4": {"min_line_words", "max_word_length"}, "refinedweb": {"max_uppercase", "min_line_words"}}
        assert numbers - {*signals} == lines.get(name, set())
    with pytest.raises(KeyError, match="no signal 'wrods'"):
        Rule("x", "wrods", low=1)


def test_a_set_is_named_or_given_with_thresholds() -> None:
    rules = Rules(sets=["fineweb", "c4"], c4={"min_sentences": 2})  # type: ignore[call-arg]
    assert rules.c4 is not None
    assert (rules.c4.min_sentences, rules.c4.min_line_words) == (2, 3)
    assert rules.fineweb is not None
    assert rules.code is None
    assert Rules(**rules.model_dump()) == rules  # a saved recipe reads back the same


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("corpus.rules.sets=[gopher_qualty]", r"no rule set 'gopher_qualty'; did you mean 'gopher_quality'\?"),
        ("corpus.rules.sets=fineweb", r"sets must be a list of lists, code"),
        ("corpus.rules.fineweb.max_newline=1", r"unknown key 'corpus.rules.fineweb.max_newline'.*'max_newlines'"),
        ("corpus.rules.finweb.max_newlines=1", r"unknown key 'corpus.rules.finweb'; did you mean 'fineweb'"),
        ("corpus.languages=[english]", r"corpus\.languages.*english"),
        ("corpus.languages={en: 2}", r"corpus\.languages\.en"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(word: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [word])


def test_a_recipe_threshold_goes_before_the_languages_own() -> None:
    chinese = read_languages()["zh"]

    def high(**rules: Any) -> float | int | None:
        sets = build_sets(Rules(**rules), chinese)
        return next(rule.high for found in sets for rule in found.rules if rule.name.endswith("max_top_2_gram"))

    assert high(sets=["gopher_repetition"]) == 0.256
    assert high(gopher_repetition={"max_top_2_gram": 0.5}) == 0.5
    assert [found.name for found in build_sets(Rules(sets=["c4", "fineweb"]), chinese)] == ["fineweb"]  # type: ignore[call-arg]
    assert [found.name for found in build_sets(Rules(c4={"min_sentences": 3}), chinese)] == ["c4"]  # type: ignore[arg-type]


def test_a_language_is_one_data_file(tmp_path: Path) -> None:
    finnish = tmp_path / "fi.yaml"
    finnish.write_text("codes: [fi]\nstop_words: [ja, on, ei]\ngopher_quality: {min_words: 5, max_word_length: 14}\n")
    text = "Joki on pitkä ja syvä, ja kesällä vesi on matalalla. Vene ei pääse myllylle asti.\n"
    sets = {"sets": ["gopher_quality"], "language_files": [str(finnish)]}
    assert rule_of(judged(text, "fi", **sets)) == "kept"
    assert rule_of(judged(text.replace(" on ", " ").replace(" ei ", " "), "fi", **sets)).endswith("min_stop_words")
    assert rule_of(judged(text * 4, "sv", **sets)) == "kept"  # no data: no rule on stop words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("codes: [xx]\nstop_wrods: [a]\n", "unknown key 'stop_wrods'; did you mean 'stop_words'"),
        ("codes: [xx]\nfineweb: {max_newline: 1}\n", "unknown key 'fineweb.max_newline'; did you mean"),
        ("codes: [xx]\nfineweb: {max_newlines: many}\n", "fineweb: "),
        ("codes: [xx]\nfineweb: 3\n", "fineweb must be a mapping"),
        ("codes: [no]\nstop_words: [1]\n", "codes must be a list|stop_words must be a list"),
        ("stop_words: [a]\n", "codes is missing"),
        ("codes: [xx]\nwords: spacy\n", "words must be one of spaces, jieba"),
        ("codes: [xx]\nleast_score: high\n", "least_score must be a number"),
        ("[", "xx.yaml: "),
        ("- a\n", "must be a mapping"),
    ],
)
def test_a_wrong_language_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "xx.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message) as raised:
        Judge(Rules(language_files=(str(path),)))
    assert "xx.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


# --- lines -----------------------------------------------------------------------------------------------------------

GOOD = "This line says something whole.\n"


@pytest.mark.parametrize(
    ("line", "c4", "refinedweb"),
    [
        ("This line says something else.", True, True),
        ('He said, "it is so"', True, True),
        ("This line has no end", False, True),
        ("This line trails off...", False, True),
        ("Too short.", False, True),
        ("Enable JavaScript to see this page.", False, True),
        ("By this you accept our Privacy Policy today.", False, True),
        (f"A word of {'x' * 1001} is too long.", False, True),
        ("ALL THE NEWS OF TODAY.", True, False),
        ("12 345 678.", True, False),
        ("1,204 likes", False, False),
        ("Sign in to go on.", True, False),
        ("Much more is here, read more...", False, False),
        ("3 items in cart now.", True, False),
        ("He signed in at noon and read more books than anyone else did on that day.", True, True),
        ("Alone.", False, False),
    ],
)
def test_each_line_rule(line: str, c4: bool, refinedweb: bool) -> None:
    text = GOOD * 6 + line + "\n" + GOOD * 40
    for name, stays in (("c4", c4), ("refinedweb", refinedweb)):
        limits = {"refinedweb": {"max_removed_words": 1}, "c4": {}}
        found = judged(text, **{name: limits[name]})
        assert isinstance(found, Document)
        assert (line in found.text.split("\n")) == stays


def test_c4_cuts_citations_and_strips_lines() -> None:
    found = judged(" It is so.[1][citation needed] \n\n" + GOOD * 5, sets=["c4"])
    assert isinstance(found, Document)
    assert found.text == "It is so.\n" + (GOOD * 5).rstrip("\n")


def test_a_line_that_goes_takes_its_bracket_with_it() -> None:
    assert rule_of(judged(GOOD * 5 + "if (x) {\n", sets=["c4"])) == "kept"
    assert rule_of(judged(GOOD * 5 + "Write { and then } instead.\n", sets=["c4"])) == "c4.max_curly_brackets"


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One. Two! Three?", 3),
        ('He came. "Who is it?" she said.', 3),
        ("Mr. J. Smith, e.g. in torch.nn at 1.5 a.m. today.", 2),
        ("Wait... what is it?", 1),
        ("他来了。你是谁？我不知道！", 3),
    ],
)
def test_sentences(line: str, sentences: int) -> None:
    found = judged(line, c4={"end_punctuation": False, "min_line_words": None, "min_sentences": 99})
    assert isinstance(found, Dropped)
    assert (found.rule, found.value) == ("c4.min_sentences", sentences)


def test_fineweb_judges_what_c4_leaves() -> None:
    menu = "Home\nAbout us\nContact\n" * 12
    assert rule_of(judged(menu + ENGLISH, sets=["fineweb"])).startswith("fineweb.")
    assert rule_of(judged(menu + ENGLISH, sets=["c4", "fineweb"])) == "kept"


def test_nothing_left_is_empty() -> None:
    assert rule_of(judged("Home\nAbout us", c4={"min_sentences": None})) == "empty"


# --- lists -----------------------------------------------------------------------------------------------------------


def test_blocked_addresses(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_text("# mine\nbad.example\nhttps://news.example/adverts/\n")
    lists = {"blocked_urls": str(path)}
    for url, entry in (
        ("https://bad.example/x", "bad.example"),
        ("http://WWW.Bad.example:80/", "bad.example"),
        ("https://notbad.example/", None),
        ("https://news.example/adverts/1?x", "news.example/adverts"),
        ("https://news.example/advertsement", None),
        ("http://[bad", None),
        ("", None),
    ):
        found = judged(PROSE, url=url, lists=lists)
        assert (found.value if isinstance(found, Dropped) else None) == entry


def test_bad_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Frobnicate\nwet paint\n坏话\n")
    for text, count in (
        ("They frobnicate. Frobnicate!", 1),
        ("frobnicated, wet painting", 0),
        ("Beware: wet paint, frobnicate", 2),
        ("他说坏话了", 1),
    ):
        found = judged(text, lists={"bad_words": str(path)})
        assert (found.value if isinstance(found, Dropped) else 0) == count
    with pytest.raises(RecipeError, match=r"corpus\.rules\.lists\.bad_words = .*nowhere"):
        judged("a", lists={"bad_words": str(tmp_path / "nowhere")})


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300) | st.text("a .\n!#-…中。", max_size=300), st.sampled_from(["en", "zh", "xx", None]))
def test_no_text_breaks_the_sets(text: str, language: str | None) -> None:
    sets = [name for name in SETS if name != "lists"]
    lenient = {"max_curly_brackets": None, "max_lorem_ipsum": None, "min_sentences": None}
    for name in sets:
        judged(text, language, **{name: lenient if name == "c4" else {}})


def test_a_wrong_threshold_is_refused() -> None:
    with pytest.raises(ValidationError):
        Rules(fineweb={"max_short_lines": 2})  # type: ignore[arg-type]


# --- written signals -------------------------------------------------------------------------------------------------


def test_signals_are_written_so_that_a_decision_can_be_repeated() -> None:
    """Of what stays and of what goes; each text's own where lines were taken out."""
    judge = Judge(Rules(sets=["gopher_quality", "c4", "fineweb"], **OFF), write_signals=True)  # type: ignore[call-arg]
    kept = judge(Document("Home\n" + ENGLISH, "id", "source", "en"))
    assert isinstance(kept, Document)
    first, left = json.loads(kept.metadata["signals"])
    assert {*left} == {*SIGNALS} - {"removed_words"}  # refinedweb is off
    assert (first["characters"], left["characters"]) == (len("Home\n" + ENGLISH), len(kept.text))
    dropped = judge(Document(MIXED, "id", "source", "en"))
    assert isinstance(dropped, Dropped)
    assert dropped.signals is not None
    (measured,) = json.loads(dropped.signals)
    for key, signal in PUBLISHED["gopher_quality"].items():
        if dropped.rule.endswith(key):
            assert measured[signal] == pytest.approx(dropped.value, abs=1e-6)
    short = Judge(Rules(), write_signals=True)(Document("a", "id", "source"))
    assert isinstance(short, Dropped)
    assert json.loads(short.signals or "") == [{"solid_characters": 1, "characters": 1, "weighed_characters": 1}]

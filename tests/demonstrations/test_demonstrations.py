"""tools/demonstrations: packages in the forms that pip and npm bring to examples, and what a promise is."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from command import PROJECT, clean_environment

from pipeline.config import load_recipe
from pipeline.train.docstring_examples import INSTRUCTION

TOOL = PROJECT / "tools" / "demonstrations"
Load = Callable[[str], Any]

CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals={forms}; plural={plural};\\n"

msgid "Enter a number."
msgstr "Bitte eine Ganzzahl eingeben, %(name)s."

#, fuzzy
msgid "A guess"
msgstr "Ein Irrtum"

msgid "Not translated"
msgstr ""

msgid "%(n)s byte"
msgid_plural "%(n)s bytes"
{plurals}
"""
GERMAN = {"forms": 2, "plural": "(n != 1)", "plurals": 'msgstr[0] "%(n)s Byte"\nmsgstr[1] "%(n)s Bytes"'}
CHINESE = {"forms": 1, "plural": "0", "plurals": 'msgstr[0] "%(n)s 字节"'}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(TOOL))
    return importlib.import_module


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_catalogue(path: Path, **values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        write_mo(file, read_po(io.BytesIO(CATALOGUE.format(**values).encode())))
    return path


def test_sentences_of_two_places_are_learnt_and_the_third_tested(load: Load, tmp_path: Path) -> None:
    for place in ("amazon", "imdb", "yelp"):
        rows = [{"text": f"good {place}  ", "class": 1}, {"text": f"bad {place}", "class": 0}]
        text = json.dumps([*rows, {"text": "", "class": None}])
        (tmp_path / f"{place}.json").write_text(text, encoding="utf-8")
    load("sentiment").write_folds(tmp_path, tmp_path / "made")
    assert lines(tmp_path / "made" / "imdb-test.jsonl") == [
        {"text": "good imdb", "label": "positive"},
        {"text": "bad imdb", "label": "negative"},
    ]
    learnt = [row["text"] for row in lines(tmp_path / "made" / "imdb-train.jsonl")]
    assert learnt == ["good amazon", "bad amazon", "good yelp", "bad yelp"]


def test_translated_messages_are_read_with_their_plurals(load: Load, tmp_path: Path) -> None:
    found = load("catalogues").read_catalogue(write_catalogue(tmp_path / "a.mo", **GERMAN))
    assert [(pair.source, pair.target) for pair in found] == [
        ("%(n)s byte", "%(n)s Byte"),
        ("%(n)s bytes", "%(n)s Bytes"),
        ("Enter a number.", "Bitte eine Ganzzahl eingeben, %(name)s."),
    ]


def test_the_one_chinese_form_is_the_plurals(load: Load, tmp_path: Path) -> None:
    found = load("catalogues").read_catalogue(write_catalogue(tmp_path / "a.mo", **CHINESE))
    assert [(pair.source, pair.target) for pair in found[:1]] == [("%(n)s bytes", "%(n)s 字节")]


def test_no_message_is_in_both_parts_however_it_is_set(load: Load) -> None:
    catalogues = load("catalogues")
    pairs = []
    for number in range(200):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        pairs += [
            catalogues.Pair(f"Delete {word}", f"{word} weg"),
            catalogues.Pair(f"DELETE {word}: %s", f"{word} fort"),
        ]
    train, held_out = catalogues.split([*pairs, *pairs])
    assert 0 < len(held_out) < len(train) <= 2 * (200 - len(held_out))
    assert not {pair.meaning for pair in train} & {pair.meaning for pair in held_out}
    assert len({pair.meaning for pair in held_out}) == len(held_out)
    again = catalogues.split(reversed(pairs))
    assert {pair.meaning for pair in again[1]} == {pair.meaning for pair in held_out}


def test_what_says_nothing_or_the_same_is_left_out(load: Load) -> None:
    catalogues = load("catalogues")
    told = [("%(a)s, %s", "x"), ("OK", "OK"), ("word " * 40, "lang"), ("Name", "Name des Feldes")]
    train, held_out = catalogues.split([catalogues.Pair(*one) for one in told])
    assert [pair.source for pair in (*train, *held_out)] == ["Name"]


def test_an_answer_that_is_held_out_is_not_learnt(load: Load) -> None:
    catalogues = load("catalogues")
    pairs = [catalogues.Pair(f"{'number ' * (1 + number)}now", "Zahl") for number in range(20)]
    train, held_out = catalogues.split(pairs, 0.5)
    assert held_out
    assert not train


def test_other_catalogues_are_learnt_but_for_what_is_held_out(load: Load) -> None:
    catalogues = load("catalogues")
    pairs = [catalogues.Pair(f"{'number ' * (1 + number)}now", f"Zahl {number}") for number in range(20)]
    train, held_out = catalogues.split(pairs, 0.5)
    others = [catalogues.Pair(f"{pair.source}!", "anders") for pair in pairs]
    words = [f"word {letter}" for letter in "abcdefgh"]
    others += [catalogues.Pair(word, held_out[0].target.upper()) for word in words]  # an answer that is held out
    others += [catalogues.Pair(word.title(), "dort") for word in words]
    more, same = catalogues.split(pairs, 0.5, others)
    assert same == held_out
    assert more[: 2 * len(train)] == [*train, *(catalogues.Pair(f"{pair.source}!", "anders") for pair in train)]
    # Of these as many as the hash does not hold out, which it does in every language.
    found = {pair.source for pair in more[2 * len(train) :]}
    assert found and found < {word.title() for word in words}
    assert not {word.lower() for word in found} & {pair.meaning for pair in catalogues.split(others, 0.5)[1]}


def test_simplified_chinese_is_found_under_both_names(load: Load, tmp_path: Path) -> None:
    for name, language in (("a", "zh_Hans"), ("b", "zh_CN"), ("c", "zh_Hant")):
        write_catalogue(tmp_path / name / "locale" / language / "LC_MESSAGES" / "django.mo", **CHINESE)
    assert len(load("translation").pairs_of(tmp_path, "zh_Hans")) == 2 * 2


def test_pairs_and_the_text_to_pretrain_on_hold_nothing_held_out(load: Load, tmp_path: Path) -> None:
    for language, values in (("de", GERMAN), ("zh_Hans", CHINESE)):
        write_catalogue(tmp_path / "django" / "locale" / language / "LC_MESSAGES" / "django.mo", **values)
    for language, values in (("de", CHINESE), ("zh_Hans", GERMAN)):  # another package, other translations
        write_catalogue(tmp_path / "other" / "locale" / language / "LC_MESSAGES" / "django.mo", **values)
    load("translation").write_pairs(tmp_path / "django", [tmp_path / "other"], tmp_path / "made")
    german = lines(tmp_path / "made" / "german-train.jsonl") + lines(tmp_path / "made" / "german-test.jsonl")
    assert {row["source"] for row in german} >= {"Enter a number."}
    text = "".join(row["text"] for row in lines(tmp_path / "made" / "text.jsonl"))
    for row in lines(tmp_path / "made" / "german-train.jsonl"):
        assert f"{row['source']}\n{row['target']}" in text
    for row in lines(tmp_path / "made" / "german-test.jsonl"):
        assert row["target"] not in text


def test_the_forms_of_a_message_stay_together(load: Load) -> None:
    catalogues = load("catalogues")
    plurals = [f"{number}s" for number in "abcdefghijklmnopqrstuvwxyz"]
    forms = [catalogues.Pair(form, f"{form} x", plural) for plural in plurals for form in (plural[0], plural)]
    train, held_out = catalogues.split(forms, 0.5)
    assert len(train) == 2 * (26 - len(held_out))
    assert not {pair.plural for pair in train} & {pair.plural for pair in held_out}


def test_equal_rows_are_not_written_again(load: Load, tmp_path: Path) -> None:
    write_lines, path = load("lines").write_lines, tmp_path / "a.jsonl"
    write_lines(path, [{"a": "ü"}])
    before = path.stat()
    write_lines(path, [{"a": "ü"}])
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    write_lines(path, [{"a": "u"}])
    assert lines(path) == [{"a": "u"}]


def test_archives_are_unpacked_inside_their_folder_and_bounded(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = load("packages")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.txt", "text")
    packages.unpack(tmp_path / "a.whl", tmp_path / "wheel")
    assert (tmp_path / "wheel" / "a" / "b.txt").read_text() == "text"
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    with pytest.raises(tarfile.OutsideDestinationError):
        packages.unpack(tmp_path / "a.tgz", tmp_path / "tarball")
    monkeypatch.setattr(packages, "MOST_BYTES", 3)
    for name in ("a.whl", "a.tgz"):
        with pytest.raises(packages.Missing, match="more than 3 bytes"):
            packages.unpack(tmp_path / name, tmp_path / "large")


def test_a_package_that_is_there_is_not_fetched(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = load("packages")
    (tmp_path / "there").mkdir()
    assert packages.wheel(tmp_path, "there==1.0") == tmp_path / "there"
    monkeypatch.setenv("PATH", "")
    assert packages.node_package(tmp_path, "there@1.0") == tmp_path / "there"
    with pytest.raises(packages.Missing, match="npm is not installed"):
        packages.node_package(tmp_path, "absent@1.0")


def test_a_promise_is_kept_above_all_that_is_beside_it(load: Load) -> None:
    promises = load("promises")
    assert promises.Promise("a", "accuracy", 0.8, {"at least": 0.8, "majority": 0.5}).kept
    assert not promises.Promise("a", "chrF", 30.0, {"copy": 30.0}).kept
    table = promises.table([promises.Promise("a", "chrF", 29.95, {"copy": 30.0})])
    assert table.splitlines()[-1] == "| a | chrF | 29.9 | copy 30.0 | BROKEN |"


def test_the_translator_is_beside_copying_and_the_first_sentence(load: Load, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    chrf = {"finetuned": 31.0, "base": 5.0, "copy_source": 30.0, "lead_sentence": 32.0}
    for task in ("german", "chinese"):
        found = {name: {"chrf": value, "rougeL": value / 100} for name, value in chrf.items()}
        (tmp_path / "evaluation" / f"{task}.json").write_text(json.dumps(found))
    german, rouge, *_ = load("translation").promises(tmp_path)
    assert german.beside == {"copy": 30.0, "first sentence": 32.0, "before": 5.0}
    assert not german.kept
    assert (rouge.metric, rouge.value, rouge.beside["first sentence"]) == ("ROUGE-L", 0.31, 0.32)


def test_the_summariser_is_beside_copying_and_the_first_line(load: Load, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    perfect = {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    found = {"base": dict.fromkeys(perfect, 0.0), "finetuned": perfect}
    (tmp_path / "evaluation" / "summarize.json").write_text(json.dumps(found))
    function = "def add_numbers(a, b):\n    return a + b"
    row = {"prompt": f"{INSTRUCTION}\n\n{function}", "reference": "Add numbers", "base": "", "finetuned": "Add numbers"}
    (tmp_path / "evaluation" / "summarize.jsonl").write_text(json.dumps({"id": "1"} | row) + "\n")
    one, _, longest = load("summarisation").promises(tmp_path)
    assert one.kept
    assert longest.beside["first line"] == pytest.approx(2 * 2 / (2 + 5))  # 2 words of 2, and of def add numbers a b
    assert longest.beside["copy"] == pytest.approx(2 * 2 / (2 + 8))


@pytest.mark.parametrize("name", ["sentiment", "translation", "summarisation"])
def test_each_recipe_is_read(name: str) -> None:
    recipe = load_recipe(str(TOOL / f"{name}.yaml"))
    assert recipe.workdir == Path("runs/demonstrations") / name
    assert recipe.only_finetunes == (name == "sentiment")


def test_a_name_that_is_none_is_told() -> None:
    command = [sys.executable, str(TOOL), "sentimental"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment(), timeout=300)
    assert done.returncode == 2
    assert "there are sentiment, translation, summarisation" in done.stderr

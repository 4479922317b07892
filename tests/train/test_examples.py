"""Examples from JSON lines and from docstrings: what is kept, what is held out, what is refused."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from tiny_models import python_file, write_text

from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.train import examples as module
from pipeline.train.example import Example, Form, hash_of
from pipeline.train.examples import Examples, Smallest, prepare, read

NOWHERE = Path("nowhere")


def task(**values: object) -> FinetuneTask:
    return FinetuneTask.model_validate({"task": "classify", **values})


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(count: int, labels: str = "ab") -> list[dict[str, object]]:
    return [{"text": f"text number {n}", "label": labels[n % len(labels)]} for n in range(count)]


def made(tmp_path: Path, settings: FinetuneTask, reserved: tuple[str, ...] = ()) -> Examples:
    return prepare(settings, "mine", NOWHERE, tmp_path / "examples", reserved)


def refusal(tmp_path: Path, settings: FinetuneTask) -> str:
    with pytest.raises(DataError) as caught:
        made(tmp_path, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- choosing ------------------------------------------------------------------------------------------------------


def test_smallest_keeps_the_smallest_keys_whatever_the_order() -> None:
    items = [Example(str(n), f"text {n}", "a") for n in range(200)]
    best = sorted(items, key=lambda item: item.key)[:20]
    for seed in range(3):
        random.Random(seed).shuffle(items)
        kept = Smallest(20)
        for item in items:
            kept.add(item.key, item)
        assert kept.examples() == best
    kept.shrink(5)
    assert kept.examples() == best[:5]


def test_choice_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    rows = labelled(100)
    settings = task(train_files=lines(tmp_path / "a.jsonl", rows), max_examples=40)
    first = made(tmp_path / "1", settings)
    random.Random(1).shuffle(rows)
    lines(tmp_path / "a.jsonl", rows)
    second = made(tmp_path / "2", settings)
    assert [example.text for example in first.train] == [example.text for example in second.train]
    assert {example.text for example in first.validation} == {example.text for example in second.validation}
    assert (len(first.train), len(first.validation), first.skipped) == (40, 10, {"max_examples": 50})


def test_examples_are_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = made(tmp_path, task(train_files=lines(path, labelled(40))))
    path.unlink()  # what is in the folder is whole: the files are not asked again
    assert made(tmp_path, task(train_files=str(path))) == first
    assert read(tmp_path / "examples", Form("classify")) == first
    row = json.loads((tmp_path / "examples" / "train.jsonl").read_text().splitlines()[0])
    assert set(row) == {"id", "text", "label"}


def test_a_killed_preparation_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = task(train_files=lines(tmp_path / "a.jsonl", labelled(40)))
    whole = made(tmp_path / "whole", settings)
    monkeypatch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut", settings)
    monkeypatch.undo()
    assert made(tmp_path / "cut", settings) == whole
    for name in ("train.jsonl", "validation.jsonl", "examples.json"):
        assert (tmp_path / "cut/examples" / name).read_bytes() == (tmp_path / "whole/examples" / name).read_bytes()


# --- rules ---------------------------------------------------------------------------------------------------------


def test_duplicates_and_contradictions_are_left_out(tmp_path: Path) -> None:
    rows = [*labelled(40), *labelled(3), {"text": "text number 0", "label": "b"}]
    found = made(tmp_path, task(train_files=lines(tmp_path / "a.jsonl", rows)))
    assert found.skipped == {"contradictory": 2, "duplicate": 3}
    assert len(found.train) + len(found.validation) == 39


def test_what_is_held_out_is_not_learnt(tmp_path: Path) -> None:
    settings = task(
        train_files=lines(tmp_path / "a.jsonl", labelled(40)),
        validation_files=lines(tmp_path / "b.jsonl", labelled(6)),
    )
    found = made(tmp_path, settings)
    assert (len(found.train), len(found.validation), found.skipped) == (34, 6, {"held_out": 6})


def test_two_answers_to_one_prompt_stay_on_one_side(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"say {n}", "completion": word} for n in range(30) for word in ("yes", "no")
    ]
    found = made(tmp_path, task(task="sft", train_files=lines(tmp_path / "a.jsonl", rows), validation=0.25))
    assert not {e.text for e in found.train} & {e.text for e in found.validation}


def test_each_label_keeps_a_training_example(tmp_path: Path) -> None:
    rows = [*labelled(30), {"text": "the only one", "label": "rare"}]
    found = made(tmp_path, task(train_files=lines(tmp_path / "a.jsonl", rows), validation=1.0))
    assert found.labels == ("a", "b", "rare")
    assert found.counts()["classes"] == {"a": 1, "b": 1, "rare": 1}


def test_examples_that_spell_special_tokens_are_left_out(tmp_path: Path) -> None:
    rows = [*labelled(30), {"text": "an attack <|im_end|> in a text", "label": "a"}]
    found = made(tmp_path, task(train_files=lines(tmp_path / "a.jsonl", rows)), reserved=("<|im_end|>",))
    assert found.skipped == {"special_tokens": 1}


# --- bad data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "bad.jsonl:2: not valid JSON"),
        ("[" * 100_000, "bad.jsonl:2: not valid JSON"),
        ("[1, 2]", "bad.jsonl:2: list in place of an object"),
        ('{"text": "x", "lable": "a"}', "bad.jsonl:2: key 'label' is missing; the line has 'text', 'lable'"),
        ('{"text": "  ", "label": "a"}', "bad.jsonl:2: 'text' is empty"),
        ('{"text": 5, "label": "a"}', "bad.jsonl:2: 'text' must be text, not int"),
        ('{"text": "x", "label": null}', "bad.jsonl:2: 'label' must be text, not NoneType"),
        ('{"text": "\\ud800", "label": "a"}', "bad.jsonl:2: 'text' holds half a character"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good", "label": "a"}\n' + line + "\n")
    assert words in refusal(tmp_path, task(train_files=str(path)))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "\xff", "label": "a"}\n')
    assert "bad.jsonl:1: not valid JSON" in refusal(tmp_path, task(train_files=str(path)))


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    good = lines(tmp_path / "good.jsonl", labelled(20))
    one = lines(tmp_path / "one.jsonl", labelled(20, "a"))
    new = lines(tmp_path / "new.jsonl", [{"text": "other words", "label": "c"}])
    none = lines(tmp_path / "none.jsonl", [])
    own = lines(tmp_path / "own.jsonl", [{"text": f"text {n}", "label": f"label {n}"} for n in range(9)])
    cases = [
        (task(), "train_files is not set"),
        (task(train_files="no/such/*.jsonl"), "finetune.mine.train_files: no/such/*.jsonl: no file matches"),
        (task(train_files=one), "all 18 training examples have the label 'a'"),
        (task(train_files=none), "no example is left to train on"),
        (task(train_files=good, validation_files=none), "no example is left to hold out"),
        (task(train_files=own), "a label's only example is not held out"),
        (task(train_files=good, validation_files=new), "new.jsonl:1: label 'c' is held out"),
    ]
    for number, (settings, words) in enumerate(cases):
        assert words in refusal(tmp_path / str(number), settings)


# --- docstrings ----------------------------------------------------------------------------------------------------

PACKAGES = {"stdlib": "file", "torch": "tensor"}


def corpus(tmp_path: Path) -> Path:
    def function(package: str, number: int) -> str:
        words = f"Return the {PACKAGES[package]} that bears number {number} in the long list of all."
        return f'def get_{number}(items):\n    """{words}"""\n    return items[{number}]\n\n\n'

    def file(package: str, numbers: range) -> str:
        return "".join(function(package, number) for number in numbers)

    train = [python_file("stdlib", f"{n}.py", file("stdlib", range(10 * n, 10 * n + 10))) for n in range(3)]
    train += [python_file("torch", "a.py", file("torch", range(0, 8)))]
    validation = [
        python_file("stdlib", "v.py", file("stdlib", range(100, 104)) + function("stdlib", 5)),
        python_file("torch", "v.py", file("torch", range(100, 103))),
        python_file("numpy", "v.py", file("stdlib", range(200, 203))),
    ]
    return write_text(tmp_path / "text", train, validation)


def test_summaries_from_the_text_tars(tmp_path: Path) -> None:
    settings = task(task="sft", data="docstring_summaries", max_examples=20)
    found = prepare(settings, "sum", corpus(tmp_path), tmp_path / "examples", ())
    assert (len(found.train), len(found.validation)) == (20, 8)  # three of eleven sources stand there twice
    held_out = {example.answer for example in found.validation}
    assert not held_out & {example.answer for example in found.train}
    example = next(example for example in found.validation if "number 103" in example.answer)
    assert example.text == (
        "Summarise this Python function in one sentence.\n\ndef get_103(items):\n    return items[103]"
    )
    assert example.answer == "Return the file that bears number 103 in the long list of all."
    assert example.id == "stdlib/v.py#3"


def test_packages_are_balanced_and_unknown_ones_dropped(tmp_path: Path) -> None:
    settings = task(data="docstring_packages", max_examples=60)
    found = prepare(settings, "pkg", corpus(tmp_path), tmp_path / "examples", ())
    assert found.counts()["classes"] == {"stdlib": 8, "torch": 8}
    assert found.counts()["validation_classes"] == {"stdlib": 3, "torch": 3}
    assert found.skipped["unknown_label"] == 3


def test_a_restart_reads_what_was_made(tmp_path: Path) -> None:
    """White space at a docstring's end is trimmed at the first start too."""

    def source(package: str, first: int) -> str:
        words = "The many words of a docstring that ends on a line of its own."
        return "".join(
            f'def f{n}():\n    """{package} {n}. {words}\n    """\n    return {n}\n\n\n'
            for n in range(first, first + 8)
        )

    documents = [python_file(package, "a.py", source(package, 0)) for package in PACKAGES]
    held_out = [python_file(package, "b.py", source(package, 50)) for package in PACKAGES]
    text = write_text(tmp_path / "text", documents, held_out)
    settings = task(data="docstring_packages")
    first, second = (prepare(settings, "pkg", text, tmp_path / "examples", ()) for _ in range(2))
    assert first == second


def test_a_corpus_without_python_is_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", [python_file("stdlib", "a.py", "x = 1\n")], [])
    with pytest.raises(DataError, match="holds none with docstrings"):
        prepare(task(task="sft", data="docstring_summaries"), "s", text, tmp_path / "examples", ())


def test_compressed_files_and_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = labelled(20)
    plain = lines(folder / "a.jsonl", rows[:10])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(Path(lines(tmp_path / "b", rows[10:])).read_bytes()))
    found = made(tmp_path, task(train_files=str(folder)))
    assert len(found.train) + len(found.validation) == 20
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(Path(plain).read_bytes())[:-9])
    assert "b.jsonl.gz: the compressed file ends early" in refusal(tmp_path / "cut", task(train_files=str(folder)))


def test_hash_is_stable() -> None:
    assert hash_of("text") == 0x982D9E3EB996F559E633F4D194DEF376

"""Labelled texts as the model sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import write_bert, write_llama, write_lstm

from pipeline.cluster.ranks import ALONE
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import load_base, open_tokenizer
from pipeline.train.classification import ClassifyTask
from pipeline.train.example import Example
from pipeline.train.examples import Examples

SETTINGS = FinetuneTask(task="classify", seq_len=24, global_batch=4, micro_batch=2, epochs=1)
EXAMPLES = tuple(Example(str(n), f"text {n} " + "word " * (n % 9), "ab"[n % 2]) for n in range(10))


@pytest.fixture(scope="module", params=[write_llama, write_bert, write_lstm], ids=["decoder", "encoder", "lstm"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClassifyTask:
    folder = request.param(tmp_path_factory.mktemp("base"))
    tokenizer = open_tokenizer(folder, SETTINGS, "kind")
    model = load_base(folder, SETTINGS, ("a", "b"), tokenizer, seed=1)
    model.eval().requires_grad_(False)
    return ClassifyTask("classify", SETTINGS, model, tokenizer, Examples("classify", EXAMPLES, EXAMPLES[:3]), seed=1)


def test_labels_are_kept_by_name(task: ClassifyTask) -> None:
    config: Any = task.model.config
    assert (config.id2label, config.label2id, config.pad_token_id) == ({0: "a", 1: "b"}, {"a": 0, "b": 1}, 1)
    assert [example.label for example in task.train] == [0, 1] * 5


def test_long_texts_are_cut_and_counted(task: ClassifyTask) -> None:
    assert max(len(example.tokens) for example in task.train) == 24
    assert task.counts["truncated"] == sum(example.cut for example in task.train) > 0


def test_loss_is_that_of_each_text_alone(task: ClassifyTask) -> None:
    expected = 0.0
    for number in task.epochs.examples(0):
        logits = task.model(input_ids=torch.from_numpy(task.train[number].tokens[None])).logits
        expected += float(F.cross_entropy(logits, torch.tensor([task.train[number].label])))
    assert float(task.loss_sum(task.model, task.batch([0, 1, 2, 3, -1]))) == pytest.approx(expected, rel=1e-5)
    assert [task.targets(step) for step in range(3)].count(4) == 2
    assert sum(task.targets(step) for step in range(3)) == 10


def test_validation_counts_right_answers(task: ClassifyTask) -> None:
    found = task.validate(task.model, ALONE, list)
    right = 0
    for example in task.validation:
        logits = task.model(input_ids=torch.from_numpy(example.tokens[None])).logits
        right += int(logits.argmax()) == example.label
    assert found["accuracy"] == pytest.approx(right / 3)


def test_new_weights_follow_the_seed(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    tokenizer = open_tokenizer(folder, SETTINGS, "kind")
    first, again, other = (load_base(folder, SETTINGS, ("a", "b"), tokenizer, seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def other(
    folder: Path, examples: tuple[Example, ...], held_out: tuple[Example, ...] | None = None, **changes: Any
) -> ClassifyTask:
    settings = SETTINGS.model_copy(update=changes)
    tokenizer = open_tokenizer(folder, settings, "kind")
    found = Examples("classify", examples, held_out or examples[:4], problem=settings.problem)
    model = load_base(folder, settings, found.labels, tokenizer, seed=1)
    model.eval().requires_grad_(False)
    return ClassifyTask("classify", settings, model, tokenizer, found, seed=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    ("problem", "answers"),
    [("multi_label", ['["x"]', '["x", "y"]', "[]", '["y"]']), ("regression", ["1.0", "-2.5", "0.0", "7.0"])],
)
def test_loss_is_transformers_own(bert: Path, problem: str, answers: list[str]) -> None:
    examples = tuple(Example(str(n), f"text {n} " + "word " * n, answer) for n, answer in enumerate(answers))
    task = other(bert, examples, problem=problem)
    expected = 0.0
    for one in task.train:
        labels = torch.tensor(one.label).float()[None]
        expected += float(task.model(input_ids=torch.from_numpy(one.tokens[None]), labels=labels).loss)
    assert float(task.loss_sum(task.model, task.batch([0, 1, 2, 3, -1]))) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss_sum(task.model, task.batch([-1]))) == 0.0


def test_validation_counts_as_scikit_learn_does(bert: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    words = ('["x"]', '["x", "y"]', "[]", '["y"]', '["z"]')
    examples = tuple(Example(str(n), f"text {n} " + "word " * n, words[n % 5]) for n in range(15))
    task = other(bert, examples, examples, problem="multi_label")
    found = task.validate(task.model, ALONE, list)
    scores = [task.model(input_ids=torch.from_numpy(one.tokens[None])).logits[0] > 0 for one in task.validation]
    predicted, actual = torch.stack(scores).int().numpy(), [one.label for one in task.validation]
    assert found["accuracy"] == pytest.approx(accuracy_score(actual, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(actual, predicted, average="macro", zero_division=0))


def test_numbers_are_measured_by_their_distance(bert: Path) -> None:
    examples = tuple(Example(str(n), f"text {n}", repr(n / 2)) for n in range(5))
    task = other(bert, examples, problem="regression")
    squares = [
        float(task.model(input_ids=torch.from_numpy(one.tokens[None])).logits[0, 0] - float(one.label)) ** 2
        for one in task.validation
    ]
    assert task.validate(task.model, ALONE, list)["rmse"] == pytest.approx((sum(squares) / 4) ** 0.5, rel=1e-5)
    assert task.model.config.problem_type == "regression"


def test_balanced_weights_let_each_class_count_alike(bert: Path) -> None:
    examples = tuple(Example(str(n), f"text {n}", "rare" if n == 0 else "usual") for n in range(4))
    task = other(bert, examples, class_weights="balanced")
    assert task.weights is not None
    assert task.weights.tolist() == pytest.approx([2.0, 2 / 3])  # 4 / (2 · 1), 4 / (2 · 3)
    several = tuple(Example(one.id, one.text, f'["{one.answer}"]') for one in examples)
    weights = other(bert, several, class_weights="balanced", problem="multi_label").weights
    assert weights is not None and weights.tolist() == pytest.approx([3.0, 1 / 3])


def test_pairs_are_given_as_the_tokenizer_gives_them(bert: Path, tmp_path: Path) -> None:
    """With a form for pairs (BERT's): two types of tokens; without: a line break between the texts."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    examples = tuple(Example(str(n), f"first {n}", "ab"[n % 2], pair=f"second {n}") for n in range(6))
    plain = other(bert, examples)
    tokenizer = open_tokenizer(bert, SETTINGS, "kind")
    assert plain.shown(tokenizer, 0).text == "first 0\nsecond 0 ⟦a⟧"
    folder = write_bert(tmp_path)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        pair="<|endoftext|> $A <|pad|>:1 $B:1",
        special_tokens=[("<|endoftext|>", 0), ("<|pad|>", 1)],
    )
    made.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    task = other(folder, examples)
    types = task.train[0].types
    assert types is not None and types.tolist() == sorted(types) and set(types.tolist()) == {0, 1}
    one = task.train[0]
    own = task.model(input_ids=torch.from_numpy(one.tokens[None]), token_type_ids=torch.from_numpy(types[None])).logits
    rows = task.rows([one, None])
    assert torch.allclose(task._logits(task.model, rows)[0], own[0], atol=1e-6)

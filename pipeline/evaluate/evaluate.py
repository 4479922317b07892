"""The evaluate stage: every model of a run, measured on held-out data that its training never saw.

Makes, under evaluation/: `language_model.json` (pretrained model beside compressors), `<task>.json` for each fine-tuned
model, and `samples.json` (continuations by the pretrained model). Each file is written whole when its part is done, so
that an evaluation that was killed continues with the first that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.evaluate.answers import answer
from pipeline.evaluate.classification import classification_metrics, predict
from pipeline.evaluate.compressors import compressor_bits_per_byte
from pipeline.evaluate.generate import GenerationSettings, context_length, generate_text
from pipeline.evaluate.held_out import held_out_text, read_examples
from pipeline.evaluate.language_model import Cost, text_cost
from pipeline.evaluate.text_metrics import text_metrics
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.directory import load_causal_model, load_model, load_tokenizer
from pipeline.progress import log, progress
from pipeline.recipe import FinetuneTask, Recipe
from pipeline.tokens.encode import Encoder
from pipeline.tracking import Tracker

SHOWN_EXAMPLES = 10  # held-out examples whose texts are kept, for people to read
SAMPLE_TOKENS = 128
SAMPLE_TEMPERATURE = 0.8

Found = dict[str, Any]


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Measure what is not measured yet, and commit.

    Raises: DataError when a model or its held-out data cannot be used.
    """
    device = find_device(ALONE)
    log.info("evaluate: on %s", device.describe())
    evaluation = Evaluation(recipe, str(device.torch_device))
    parts: dict[str, Callable[[], Any]] = {"language_model": evaluation.language_model}
    for name, task in recipe.finetune.items():
        kinds = {"sft": evaluation.instruction, "classify": evaluation.classification}
        parts[name] = partial(kinds[task.task], name)
    parts["samples"] = evaluation.samples
    metrics: dict[str, float] = {}
    outputs: list[Path] = []
    for name, measure in parts.items():
        path = work.folder / f"{name}.json"
        if path.is_file():  # made by this very evaluation before it was stopped: another's would have been set aside
            found = json.loads(path.read_text(encoding="utf-8"))
            log.info("evaluate: %s was measured before", name)
        else:
            found = measure()
            write_json(path, found)
        outputs.append(path)
        numbers = numbers_of(found, name) if isinstance(found, dict) else {}
        tracker.log_metrics(numbers)
        metrics |= numbers
    examples = {name: int(metrics[f"{name}/examples"]) for name in recipe.finetune}
    text = {name: int(metrics[f"language_model/{name}"]) for name in ("tokens", "bytes", "documents")}
    return work.finish(outputs, counts={"text": text, "examples": examples}, metrics=metrics)


def numbers_of(found: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The numbers in an evaluation's file as flat metrics: `summarize/finetuned/rougeL`. Lists (samples, the confusion
    matrix) and words are left out."""
    numbers: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            numbers |= numbers_of(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)):
            numbers[f"{prefix}/{name}"] = float(value)
    return numbers


@dataclass(frozen=True)
class Evaluation:
    """The parts of the stage. device: a torch device's name."""

    recipe: Recipe
    device: str

    @property
    def pretrained(self) -> Path:
        """The exported model's directory."""
        return self.recipe.workdir / "model"

    def language_model(self) -> Found:
        """Loss, perplexity and bits per byte of the pretrained model, beside compressors, and by source."""
        settings, text_folder = self.recipe.evaluate, self.recipe.workdir / "text"
        held_out = held_out_text(text_folder, settings.max_bytes)
        model, _ = load_causal_model(self.pretrained, device=self.device)
        encoder = Encoder.open(self.pretrained, fast=False)  # exact; the model is far slower than either engine
        asked = settings.context or self.recipe.pretrain.seq_len
        context = min(asked, context_length(model) or asked)
        stride = min(context, settings.stride or max(1, context // 2))
        costs: dict[str, Cost] = {}
        with progress("bits per byte", sum(source.to_read for source in held_out)) as bar:
            for source in held_out:
                costs[source.source] = text_cost(
                    model, encoder, source.texts(), context=context, stride=stride, batch=settings.batch, bar=bar
                )
        found: Found = sum(costs.values(), Cost()).table()
        found |= {"context": context, "stride": stride}
        found["baselines"] = compressor_bits_per_byte(text for source in held_out for text in source.texts())
        found["by_source"] = {name: cost.table() for name, cost in costs.items()}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in found["baselines"].items())
        log.info("evaluate: %.3f bits per byte on held-out text (%s)", found["bits_per_byte"], shown)
        return found

    def instruction(self, name: str) -> Found:
        """Answers of a fine-tuned model and of its base model to the same held-out prompts, beside the references."""
        task, settings = self.recipe.finetune[name], self.recipe.evaluate
        examples = self._examples(name, "validation", ("id", "prompt", "completion"), settings.max_examples)
        prompts = [example["prompt"] for example in examples]
        references = [example["completion"] for example in examples]
        tuned_folder = self._folder(name) / "model"
        template = load_tokenizer(tuned_folder).chat_template
        answers: dict[str, list[str]] = {}
        measured: dict[str, Any] = {}
        for label, folder in (("base", self._base(task)), ("finetuned", tuned_folder)):
            model, tokenizer = load_causal_model(folder, device=self.device)
            tokenizer.chat_template = template  # the same question to both; a base model may have no template
            greedy = GenerationSettings(
                max_tokens=settings.max_new_tokens, temperature=0, seed=self.recipe.seed, batch=settings.batch
            )
            longest = min(task.seq_len, context_length(model) or task.seq_len)
            answers[label] = answer(model, tokenizer, prompts, greedy, longest)
            measured[label] = text_metrics(references, answers[label])
            log.info("evaluate: %s, %s: ROUGE-L %.3f", name, label, measured[label].values["rougeL"])
        rows = zip(prompts, references, answers["base"], answers["finetuned"], strict=True)
        return {
            "task": "sft",
            "examples": len(examples),
            "bleu_tokenizer": measured["base"].bleu_tokenizer,
            "base": measured["base"].values,
            "finetuned": measured["finetuned"].values,
            "samples": [
                dict(zip(("prompt", "reference", "base", "finetuned"), row, strict=True))
                for row in list(rows)[:SHOWN_EXAMPLES]
            ],
        }

    def classification(self, name: str) -> Found:
        """How often a fine-tuned classifier is right on held-out texts, beside the commonest training label."""
        task, settings = self.recipe.finetune[name], self.recipe.evaluate
        examples = self._examples(name, "validation", ("id", "text", "label"), settings.max_examples)
        training = self._examples(name, "train", ("label",))
        folder = self._folder(name) / "model"
        model = load_model(folder, "AutoModelForSequenceClassification", device=self.device)
        texts = [example["text"] for example in examples]
        longest = min(task.seq_len, context_length(model) or task.seq_len)
        with progress(f"classify {name}", len(texts), " texts") as bar:
            predicted = predict(model, load_tokenizer(folder), texts, seq_len=longest, batch=settings.batch, bar=bar)
        labels = [label for _, label in sorted(model.config.id2label.items())]
        actual = [example["label"] for example in examples]
        found = classification_metrics(actual, predicted, labels, [example["label"] for example in training])
        shown = found["accuracy"], found["majority_accuracy"]
        log.info("evaluate: %s: accuracy %.3f (always the commonest label: %.3f)", name, *shown)
        return {"task": "classify", **found}

    def samples(self) -> list[dict[str, str]]:
        """Continuations of the recipe's prompts by the pretrained model."""
        prompts = self.recipe.evaluate.prompts
        if not prompts:
            return []
        model, tokenizer = load_causal_model(self.pretrained, device=self.device)
        tokens = min(SAMPLE_TOKENS, (context_length(model) or 2 * SAMPLE_TOKENS) // 2)
        settings = GenerationSettings(max_tokens=tokens, temperature=SAMPLE_TEMPERATURE, seed=self.recipe.seed)
        texts = generate_text(model, tokenizer, prompts, settings)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

    def _folder(self, name: str) -> Path:
        return self.recipe.workdir / "finetune" / name

    def _base(self, task: FinetuneTask) -> Path:
        return Path(task.base) if task.base else self.pretrained

    def _examples(
        self, name: str, part: str, fields: tuple[str, ...], limit: int | None = None
    ) -> list[dict[str, str]]:
        path = self._folder(name) / "examples" / f"{part}.jsonl"
        found = read_examples(path, fields, limit)
        if not found:
            raise DataError(f"{path}: no example, so there is nothing to evaluate {name} on; give the task more data")
        return found

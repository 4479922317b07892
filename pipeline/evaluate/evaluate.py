"""The evaluate stage: every model of a run, measured on held-out data that its training never saw.

Makes, under evaluation/: `language_model.json` (pretrained model beside compressors), `<task>.json` for each fine-tuned
model, and `samples.json` (continuations by the pretrained model). Beside them `language_model.jsonl` and `<task>.jsonl`
have a line for each document or example: what paired tests compare (compare.py). Each file is written whole when its
part is done, so that an evaluation that was killed continues with the first that is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError
from pipeline.evaluate.answers import Messages, answer, conversation
from pipeline.evaluate.baselines import text_baselines
from pipeline.evaluate.classification import answers_of, by_group, classification_metrics, predict
from pipeline.evaluate.compressors import compressor_bits_per_byte
from pipeline.evaluate.confidence import interval, ratio
from pipeline.evaluate.continued import continued
from pipeline.evaluate.generate import GenerationSettings, context_length, generate_text, reads_with_encoder
from pipeline.evaluate.held_out import HeldOutText, HeldOutTokens, held_out_text, held_out_tokens, read_examples
from pipeline.evaluate.labels_and_numbers import number_metrics, several_labels_metrics
from pipeline.evaluate.language_model import Cost, document_costs
from pipeline.evaluate.records import text_hash, write_records
from pipeline.evaluate.text_metrics import text_metrics
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.directory import load_causal_model, load_model, load_text_model, load_tokenizer
from pipeline.model.hub import local_folder
from pipeline.progress import log, progress
from pipeline.recipe import FinetuneTask, Recipe
from pipeline.tokens.encode import Encoder
from pipeline.tracking import Tracker
from pipeline.train.example import FIELDS

SHOWN_EXAMPLES = 10  # held-out examples whose texts are kept, for people to read
UNKNOWN = "unknown"  # the language of a document, or the group of an example, that nothing is said of
SAMPLE_TOKENS = 128
SAMPLE_TEMPERATURE = 0.8

Found = dict[str, Any]


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Measure what is not measured yet, and commit.

    Raises: DataError when a model or its held-out data cannot be used.
    """
    device = find_device(ALONE)
    log.info("evaluate: on %s", device.describe())
    evaluation = Evaluation(recipe, str(device.torch_device), work.folder)
    parts: dict[str, Callable[[], Any]] = {}
    if not recipe.only_finetunes:  # else there is no pretrained model
        parts["language_model"] = evaluation.language_model
    for name, task in recipe.finetune.items():
        measures = {"classify": evaluation.classification, "continue": evaluation.continued}
        parts[name] = partial(measures.get(task.task, evaluation.text), name)
    if not recipe.only_finetunes:
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
    outputs += [path for name in parts if (path := work.folder / f"{name}.jsonl").is_file()]
    examples = {name: int(metrics[f"{name}/examples"]) for name in recipe.finetune}
    counts: Found = {"examples": examples}
    if "language_model" in parts:
        counts["text"] = {name: int(metrics[f"language_model/{name}"]) for name in ("tokens", "bytes", "documents")}
    return work.finish(outputs, counts=counts, metrics=metrics)


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
    """The parts of the stage. device: a torch device's name; folder: where records of single examples go."""

    recipe: Recipe
    device: str
    folder: Path

    @property
    def pretrained(self) -> Path:
        """The exported model's directory."""
        return self.recipe.workdir / "model"

    def language_model(self) -> Found:
        """Loss, perplexity and bits per byte of the pretrained model, beside compressors, by source and by language.

        Memory: two numbers a document.
        """
        settings, text_folder = self.recipe.evaluate, self.recipe.workdir / "text"
        encoder = Encoder.open(self.pretrained, fast=False)  # exact; the model is far slower than either engine
        held_out: Sequence[HeldOutText | HeldOutTokens]
        if self.recipe.only_imports:
            held_out = held_out_tokens(self.recipe.workdir / "tokens", encoder, settings.max_bytes)
        else:
            held_out = held_out_text(text_folder, settings.max_bytes)
        model, _ = load_causal_model(self.pretrained, device=self.device)
        asked = settings.context or self.recipe.pretrain.seq_len
        context = min(asked, context_length(model) or asked)
        stride = min(context, settings.stride or max(1, context // 2))
        by_source: dict[str, Cost] = {}
        by_language: dict[str, Cost] = {}
        nats: list[float] = []
        sizes: list[int] = []

        def measured() -> Iterator[Found]:
            with progress("bits per byte", sum(source.to_read for source in held_out)) as bar:
                for source in held_out:
                    for document, cost in document_costs(
                        model,
                        encoder,
                        source.documents(),
                        context=context,
                        stride=stride,
                        batch=settings.batch,
                        bar=bar,
                    ):
                        language = document.language or UNKNOWN
                        by_source[source.source] = by_source.get(source.source, Cost()) + cost
                        by_language[language] = by_language.get(language, Cost()) + cost
                        nats.append(cost.nats)
                        sizes.append(cost.bytes)
                        row = {"text": text_hash(document.text), "source": source.source, "language": language}
                        yield row | {"bytes": cost.bytes, "tokens": cost.tokens, "nats": cost.nats}

        write_records(self.folder / "language_model.jsonl", measured())
        found: Found = sum(by_source.values(), Cost()).table()
        found |= {"context": context, "stride": stride}
        if bounds := interval(ratio, nats, sizes):
            found["intervals"] = {"bits_per_byte": [bound / math.log(2) for bound in bounds]}
        found["baselines"] = compressor_bits_per_byte(
            document.text for source in held_out for document in source.documents()
        )
        found["by_source"] = {name: cost.table() for name, cost in by_source.items()}
        if set(by_language) != {UNKNOWN}:
            found["by_language"] = {name: cost.table() for name, cost in sorted(by_language.items())}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in found["baselines"].items())
        log.info("evaluate: %.3f bits per byte on held-out text (%s)", found["bits_per_byte"], shown)
        return found

    def text(self, name: str) -> Found:
        """Answers of a fine-tuned model and of its base model to the same held-out prompts, beside the references, and
        what copying the source or its first sentence would reach. Of a chat the last answer is asked for, after all
        that was said before it, the right answers of the assistant included; its source is the last question."""
        task, settings = self.recipe.finetune[name], self.recipe.evaluate
        asked, answered = FIELDS[task.task]
        fields = ("id", asked, answered)
        examples = self._examples(name, "validation", fields, settings.max_examples, ("messages",))
        chats = [conversation(example) for example in examples]
        sources = [chat[-1]["content"] if chat else one[asked] for chat, one in zip(chats, examples, strict=True)]
        prompts = [example[asked] for example in examples]
        if task.task == "seq2seq":
            prompts = [task.prompt.replace("{source}", one) for one in sources]
        questions: list[str | Messages] = [chat or prompt for chat, prompt in zip(chats, prompts, strict=True)]
        references = [example[answered] for example in examples]
        tuned_folder = self._folder(name) / "model"
        template = load_tokenizer(tuned_folder).chat_template
        answers: dict[str, list[str]] = {}
        measured: dict[str, Any] = {}
        greedy = GenerationSettings(
            max_tokens=settings.max_new_tokens, temperature=0, seed=self.recipe.seed, batch=settings.batch
        )
        for label, folder in (("base", self._base(task)), ("finetuned", tuned_folder)):
            model, tokenizer = load_text_model(folder, device=self.device)
            if reads_with_encoder(model):
                answers[label] = generate_text(model, tokenizer, prompts, greedy)
            else:
                tokenizer.chat_template = template  # the same question to both; a base model may have no template
                longest = min(task.seq_len, context_length(model) or task.seq_len)
                answers[label] = answer(model, tokenizer, questions, greedy, longest)
            measured[label] = text_metrics(references, answers[label], intervals=True)
            log.info("evaluate: %s, %s: ROUGE-L %.3f", name, label, measured[label].values["rougeL"])
        names = ("prompt", "reference", "base", "finetuned")
        columns = zip(prompts, references, answers["base"], answers["finetuned"], strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in columns]
        identified = zip(examples, rows, strict=True)
        write_records(self.folder / f"{name}.jsonl", ({"id": example["id"]} | row for example, row in identified))
        return {
            "task": task.task,
            "examples": len(examples),
            "bleu_tokenizer": measured["base"].bleu_tokenizer,
            "base": measured["base"].values,
            "finetuned": measured["finetuned"].values,
            **text_baselines(references, sources),
            "intervals": {label: metrics.intervals for label, metrics in measured.items()},
            "samples": rows[:SHOWN_EXAMPLES],
        }

    def classification(self, name: str) -> Found:
        """How often a fine-tuned classifier is right on held-out texts, beside the commonest training label; several
        labels, and numbers, have their own measures."""
        task, settings = self.recipe.finetune[name], self.recipe.evaluate
        fields = ("id", "text", "label")
        examples = self._examples(name, "validation", fields, settings.max_examples, ("text_pair", "group"))
        training = [example["label"] for example in self._examples(name, "train", ("label",))]
        folder = self._folder(name) / "model"
        model = load_model(folder, "AutoModelForSequenceClassification", device=self.device)
        texts = [example["text"] for example in examples]
        pairs = [example.get("text_pair", "") for example in examples]
        with progress(f"classify {name}", len(texts), " texts") as bar:
            probabilities = predict(
                model,
                load_tokenizer(folder),
                texts,
                seq_len=min(task.seq_len, context_length(model) or task.seq_len),
                batch=settings.batch,
                bar=bar,
                pairs=pairs if any(pairs) else (),
                problem=task.problem,
            )
        labels = [label for _, label in sorted(model.config.id2label.items())]
        actual = [example["label"] for example in examples]
        self._record(name, examples, answers_of(probabilities, labels, task.problem), probabilities, labels)
        if task.problem == "multi_label":
            return {"task": "classify", "problem": task.problem} | several_labels_metrics(actual, probabilities, labels)
        if task.problem == "regression":
            return {"task": "classify", "problem": task.problem} | number_metrics(actual, probabilities, training)
        found = classification_metrics(actual, probabilities, labels, training)
        predicted = [labels[index] for index in probabilities.argmax(-1)]
        groups = [example.get("group", UNKNOWN) for example in examples]
        if set(groups) != {UNKNOWN}:
            found |= by_group(actual, predicted, groups)
        shown = found["accuracy"], found["majority_accuracy"]
        log.info("evaluate: %s: accuracy %.3f (always the commonest label: %.3f)", name, *shown)
        return {"task": "classify", "problem": task.problem, **found}

    def _record(
        self, name: str, examples: Sequence[Mapping[str, str]], said: Sequence[Any], scores: Any, labels: Sequence[str]
    ) -> None:
        """Keep what a classifier said of each example. scores (examples, labels): of a number it is the number."""
        rows = (
            {"id": example["id"], "text": text_hash(example["text"]), "label": example["label"], "predicted": one}
            | ({} if isinstance(one, float) else {"probabilities": dict(zip(labels, row, strict=True))})
            for example, one, row in zip(examples, said, scores.tolist(), strict=True)
        )
        write_records(self.folder / f"{name}.jsonl", rows)

    def continued(self, name: str) -> Found:
        """More pretraining: loss and bits per byte of the task's held-out text, before and after."""
        task = self.recipe.finetune[name]
        return continued(name, task, self._folder(name), self._base(task), self.recipe.evaluate, self.device)

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
        return local_folder(task.base) if task.base else self.pretrained

    def _examples(
        self,
        name: str,
        part: str,
        fields: tuple[str, ...],
        limit: int | None = None,
        optional: tuple[str, ...] = (),
    ) -> list[dict[str, str]]:
        path = self._folder(name) / "examples" / f"{part}.jsonl"
        found = read_examples(path, fields, limit, optional)
        if not found:
            raise DataError(f"{path}: no example, so there is nothing to evaluate {name} on; give the task more data")
        return found

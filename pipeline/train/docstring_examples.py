"""The demo's two tasks, made from Python sources in the text tars: summarise a function; tell a docstring's package.

`docstring_summaries`: the prompt is a function's source without its docstring, the completion the first sentence of
that docstring. `docstring_packages`: the text is a docstring, the label the package that it comes from; each package
gives at most its equal share, and never more than the second largest, so that naming the commonest says little.
Training examples come from text/train, those held out from text/validation. One pass over the tars; what is kept in
memory is bounded by the number of examples asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.document import Document
from pipeline.corpus.text_tars import Part, read_text_tar, text_tars
from pipeline.errors import DataError
from pipeline.progress import progress
from pipeline.recipe import FinetuneTask
from pipeline.train.docstrings import Unfit, candidates, source_without_docstring, summary_of, text_of
from pipeline.train.example import Example, Form, hash_of
from pipeline.train.examples import Examples, Smallest

INSTRUCTION = "Summarise this Python function in one sentence."


def prepare(task: FinetuneTask, name: str, text: Path) -> Examples:
    """Examples of `task.data` from the text tars in `text`.

    Raises: DataError when the corpus holds no Python sources, or a tar is damaged.
    """
    make = _summaries if task.data == "docstring_summaries" else _packages
    skipped: Counter[str] = Counter()
    validation = make(_documents(text, "validation", name), task.max_validation_examples, skipped)
    # Training examples that are held out too are dropped later: look for so many more.
    limit = None if task.max_examples is None else task.max_examples + len(validation)
    train = make(_documents(text, "train", name), limit, skipped)
    if not train:
        raise DataError(
            f"finetune.{name}: {task.data} is made from Python sources, and {text / 'train'} holds none with "
            "docstrings; add a source of type python_docs (content: source) to the corpus, or give your own examples "
            "with data: jsonl"
        )
    if task.task == "classify":  # a package with held-out documents alone, in a small corpus
        known = {example.answer for example in train}
        skipped["unknown_label"] += sum(example.answer not in known for example in validation)
        validation = [example for example in validation if example.answer in known]
    return Examples(Form.of(task).kind, tuple(train), tuple(validation), dict(skipped))


def _documents(text: Path, part: Part, name: str) -> Iterator[Document]:
    """Documents that say which package they come from."""
    tars = text_tars(text, part)
    with progress(f"finetune.{name}: examples from {part}", sum(path.stat().st_size for path in tars), "B") as bar:
        for path in tars:
            for document in read_text_tar(path):
                if "package" in document.metadata:
                    yield document
            bar.advance(path.stat().st_size)


def _summaries(documents: Iterator[Document], limit: int | None, skipped: Counter[str]) -> list[Example]:
    """One example a summary: two functions with the same words teach nothing new. Chosen by the summary's hash."""
    chosen = Smallest(limit)
    for document in documents:
        for number, candidate in enumerate(candidates(document)):
            if candidate.kind == "class":
                continue
            try:
                summary = summary_of(candidate.docstring)
                key = hash_of(summary)
                if chosen.wants(key):
                    source = source_without_docstring(candidate)
                    prompt = f"{INSTRUCTION}\n\n{source}"
                    chosen.add(key, Example(f"{document.id}#{number}", prompt, summary))
            except Unfit as reason:
                skipped[str(reason)] += 1
    seen: dict[str, Example] = {}
    for example in chosen.examples():
        seen.setdefault(example.text, example)
    return list(seen.values())


def _packages(documents: Iterator[Document], limit: int | None, skipped: Counter[str]) -> list[Example]:
    """At most limit/packages docstrings of each package, chosen by hash; a text that two packages share is dropped."""
    chosen: dict[str, Smallest] = {}
    for document in documents:
        package = document.metadata["package"]
        if package not in chosen:
            chosen[package] = Smallest(limit)
            for kept in chosen.values():
                kept.shrink(None if limit is None else max(1, limit // len(chosen)))
        for number, candidate in enumerate(candidates(document)):
            try:
                text = text_of(candidate.docstring)
                chosen[package].add(hash_of(text), Example(f"{document.id}#{number}", text, package))
            except Unfit as reason:
                skipped[str(reason)] += 1
    bearers = Counter(example.text for kept in chosen.values() for example in kept.examples())
    skipped["contradictory"] += sum(count for count in bearers.values() if count > 1)
    classes = [[example for example in kept.examples() if bearers[example.text] == 1] for kept in chosen.values()]
    second = sorted(map(len, classes))[-2] if len(classes) > 1 else None
    return sorted((example for found in classes for example in found[:second]), key=lambda example: example.key)

"""A recipe: one run, from corpora to metrics. Its sections stand in settings/, and can all be had from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.settings.cluster import PreflightSettings
from pipeline.settings.corpus import Corpus
from pipeline.settings.evaluation import EvaluateSettings, TrackingSettings
from pipeline.settings.model import ModelSettings
from pipeline.settings.rules import Rules
from pipeline.settings.section import Section
from pipeline.settings.sources import (
    CodeSource,
    CsvSource,
    FileSource,
    HtmlSource,
    HuggingFaceSource,
    JsonlSource,
    MailSource,
    MarkdownSource,
    PageSource,
    ParquetSource,
    PythonSource,
    RecordSource,
    Source,
    SourceBase,
    TextSource,
    WarcSource,
)
from pipeline.settings.tokens import TokenImport, TokenizerSettings, TokenizeSettings
from pipeline.settings.training import (
    ExportSettings,
    FinetuneTask,
    LoraSettings,
    LossPolicy,
    OptimizerSettings,
    PretrainSettings,
    ScheduleSettings,
    TrainingBase,
)

__all__ = [
    "CodeSource",
    "Corpus",
    "CsvSource",
    "EvaluateSettings",
    "ExportSettings",
    "FileSource",
    "FinetuneTask",
    "HtmlSource",
    "HuggingFaceSource",
    "JsonlSource",
    "LoraSettings",
    "LossPolicy",
    "MailSource",
    "MarkdownSource",
    "ModelSettings",
    "OptimizerSettings",
    "PageSource",
    "ParquetSource",
    "PreflightSettings",
    "PretrainSettings",
    "PythonSource",
    "Recipe",
    "RecordSource",
    "Rules",
    "ScheduleSettings",
    "Section",
    "Source",
    "SourceBase",
    "TextSource",
    "TokenImport",
    "TokenizeSettings",
    "TokenizerSettings",
    "TrackingSettings",
    "TrainingBase",
    "WarcSource",
]

MADE_FOR = {"docstring_summaries": "sft", "docstring_packages": "classify"}  # what is made from the text tars
RESERVED_TASKS = ("language_model", "samples", "manifest", "building")  # evaluation/<task>.json must be the task's


class Recipe(Section):
    """One run, from corpora to metrics."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1234
    """Seeds everything that is drawn at random."""
    workdir: Path = Path()
    """Where the run lives; default runs/<name>."""
    corpus: Corpus = Corpus()
    tokenizer: TokenizerSettings = TokenizerSettings()
    tokenize: TokenizeSettings = TokenizeSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    export: ExportSettings = ExportSettings()
    finetune: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], FinetuneTask] = Field({})
    evaluate: EvaluateSettings = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()
    preflight: PreflightSettings = PreflightSettings()

    @model_validator(mode="before")
    @classmethod
    def _default_workdir(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("workdir"):
            values = {**values, "workdir": Path("runs") / str(values.get("name", "run"))}
        return values

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_base(cls, values: Any) -> Any:
        """Whose pretraining goes on, its tokenizer goes on too, unless another is named."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict) or not model.get("base"):
            return values
        tokenizer = values.get("tokenizer") or {}
        if not isinstance(tokenizer, dict) or tokenizer.get("path") or tokenizer.get("continue_from"):
            return values
        return {**values, "tokenizer": {**tokenizer, "path": model["base"]}}

    @model_validator(mode="after")
    def _task_names_are_free(self) -> Recipe:
        for name in self.finetune:
            if name in RESERVED_TASKS:
                raise ValueError(f"finetune.{name}: evaluation/{name}.json is another file's name; rename the task")
        return self

    @model_validator(mode="after")
    def _imports_fit(self) -> Recipe:
        imports = self.tokenize.imports
        if imports and not self.tokenizer.given:
            raise ValueError(
                "tokenize.imports needs tokenizer.path: the folder of the tokenizer that made these tokens"
            )
        for name in {one.name for one in imports} & {source.name for source in self.corpus.sources}:
            raise ValueError(f"tokenize.imports: '{name}' is a source of text already; give the import another name")
        return self

    def task(self, name: str) -> FinetuneTask:
        """The settings of a training: of a task, `topics`, or of a combination of its grid, `topics@epochs=2`.

        Raises: KeyError when there is none of that name.
        """
        task, at, values = name.partition("@")
        return self.finetune[task].combinations()[values] if at else self.finetune[task]

    def trainings(self, task: str) -> tuple[str, ...]:
        """The names of what a task trains, in order: the combinations of its grid, then the task itself."""
        return (*(f"{task}@{values}" for values in self.finetune[task].combinations()), task)

    @property
    def only_imports(self) -> bool:
        """Whether all tokens come from other programs, so that there is no text: no shard stage."""
        return bool(self.tokenize.imports) and not self.corpus.sources

    @property
    def only_finetunes(self) -> bool:
        """Whether other people's models are fine-tuned on files, and nothing else: no text, tokens or pretraining."""
        brings = self.corpus.sources or self.tokenize.imports or self.pretrain.tokens_from
        tasks = self.finetune.values()
        return not brings and bool(tasks) and all(task.base and not task.reads_text for task in tasks)

    @model_validator(mode="after")
    def _lengths_fit(self) -> Recipe:
        if self.pretrain.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"pretrain.seq_len ({self.pretrain.seq_len}) is longer than model.max_seq_len "
                f"({self.model.max_seq_len}); raise the latter or lower the former"
            )
        for phase in self.pretrain.phases:
            if phase.seq_len and phase.seq_len > self.model.max_seq_len:
                raise ValueError(
                    f"pretrain.phases: seq_len ({phase.seq_len}) is longer than model.max_seq_len "
                    f"({self.model.max_seq_len}); raise the latter or lower the former"
                )
        for name, task in self.finetune.items():
            if task.base is None and task.seq_len > self.model.max_seq_len:
                raise ValueError(
                    f"finetune.{name}.seq_len ({task.seq_len}) is longer than model.max_seq_len "
                    f"({self.model.max_seq_len}), and its base is that model; lower the former"
                )
        return self

    @model_validator(mode="after")
    def _phases_weigh_sources(self) -> Recipe:
        """Of tokens that another run made, only the tokens can tell (train/phases.py)."""
        known = [one.name for one in (*self.corpus.sources, *self.tokenize.imports)]
        if known and not self.pretrain.tokens_from and (wrong := self.pretrain.wrong_weights(known)):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _tasks_have_data(self) -> Recipe:
        for name, task in self.finetune.items():
            if task.reads_text and self.only_imports:
                raise ValueError(
                    f"finetune.{name}.data {task.data} is made from the text of corpus.sources, of which there is "
                    "none; give train_files, or finetune: {}"
                )
            if not task.reads_text and not task.train_files:
                raise ValueError(f"finetune.{name}.train_files is not set; give a file or a glob pattern ({task.data})")
            if task.data in MADE_FOR and task.task != MADE_FOR[task.data]:
                raise ValueError(
                    f"finetune.{name}: data {task.data} is for task {MADE_FOR[task.data]}, not {task.task}"
                )
        return self

"""What a recipe holds: one frozen, typed model a section, each field with its meaning and unit.

A field marked `no_effect()` changes how fast or where the work is done, never what comes out of it: it is left out
of a stage's key, so that changing it makes nothing run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0.0)]


def no_effect(default: Any, **constraints: Any) -> Any:
    """A field that does not change what a stage makes."""
    return Field(default, json_schema_extra={"affects": False}, **constraints)


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def settings(self) -> dict[str, Any]:
        """The values that decide what a stage makes, as plain JSON types."""
        chosen: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("affects") is False:
                continue
            chosen[name] = _plain(getattr(self, name))
        return chosen


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.settings()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- corpora -------------------------------------------------------------------------------------------------------


class SourceBase(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=64)]
    """Short name; it appears in file names, metadata and every table."""
    language: str | None = None
    """Language of all its documents (ISO 639 code), where known; written to each document's metadata."""
    weight: PositiveFloat = 1.0
    """How often its tokens are seen in pretraining, relative to sources of weight 1."""
    max_bytes: PositiveInt | None = None
    """Stop after so many bytes of text (UTF-8), in the source's order."""


class PythonSource(SourceBase):
    """Python's standard library and the packages installed beside this one: real text on every machine."""

    type: Literal["python_docs"]
    packages: tuple[str, ...] = ("stdlib",)
    """Top-level import names; `stdlib` is the standard library. A package that is not installed is an error."""
    content: Literal["source", "docstrings"] = "source"
    """Whole source files, or the docstrings in them (one document a file)."""


class FileSource(SourceBase):
    path: Annotated[str, Field(min_length=1)]
    """A file, a folder (searched in depth) or a glob pattern; relative to the folder the command is given in."""


class TextSource(FileSource):
    """Plain text: each file is a document (.txt, .md, … optionally .gz or .zst)."""

    type: Literal["text"]
    split: Literal["file", "line", "paragraph"] = "file"
    """What a document is: a file, a line, or a run of lines between blank lines."""


class JsonlSource(FileSource):
    """JSON lines, plain, .gz or .zst."""

    type: Literal["jsonl"]
    text_field: str = "text"
    """The key that holds the text."""
    id_field: str | None = None
    """The key that holds a document's id, if any; else file and line number serve."""


class ParquetSource(FileSource):
    """Parquet files."""

    type: Literal["parquet"]
    text_field: str = "text"
    id_field: str | None = None


class HuggingFaceSource(SourceBase):
    """Any `datasets` data set, streamed: a hub name, or a local folder or builder with `data_files`."""

    type: Literal["huggingface"]
    path: Annotated[str, Field(min_length=1)]
    """Hub name (`user/set`), local folder, or builder (`json`, `csv`, `parquet`, `text`)."""
    config: str | None = None
    split: str = "train"
    data_files: str | None = None
    text_field: str = "text"
    id_field: str | None = None


Source = Annotated[
    PythonSource | TextSource | JsonlSource | ParquetSource | HuggingFaceSource, Field(discriminator="type")
]


class Rules(Section):
    """Quality rules of the shard stage; `null` switches a rule off. Sources of thresholds: corpus/rules.py."""

    min_characters: Count | None = 200
    max_characters: PositiveInt | None = 1_000_000
    min_words: Count | None = 20
    max_words: PositiveInt | None = 100_000
    mean_word_length: tuple[NonNegative, NonNegative] | None = None
    max_symbol_to_word_ratio: NonNegative | None = None
    min_alphabetic_words: Fraction | None = None
    max_duplicate_lines: Fraction | None = None
    max_line_length: PositiveInt | None = None
    min_alphanumeric: Fraction | None = 0.25
    max_replacement_characters: Fraction | None = 0.01


class Corpus(Section):
    """The shard stage: sources in, text tars out."""

    sources: tuple[Source, ...] = ()
    """Where text comes from."""
    normalize: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalisation form."""
    rules: Rules = Rules()
    drop_duplicates: bool = True
    """Drop documents whose normalised text was seen before, in any source."""
    validation: Fraction = 0.01
    """Share of documents held out, chosen by a hash of the text."""
    validation_max_bytes: PositiveInt | None = None
    """Upper bound of the validation set, in bytes of text; what exceeds it goes to training."""
    split_bytes: PositiveInt = 64 * 1024 * 1024
    """Input is cut into tasks of about so many bytes; each task makes its own tars."""
    shard_bytes: PositiveInt = 256 * 1024 * 1024
    """A text tar is closed once it holds so many bytes of text."""
    bad_lines: Literal["fail", "drop"] = "fail"
    """What a broken line or record does: end the stage, or be dropped and counted."""
    workers: Count = no_effect(0)
    """Processes; 0 is one a core. The output does not depend on it."""

    @model_validator(mode="after")
    def _names_differ(self) -> Corpus:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'; give each its own name")
        return self


# --- tokens --------------------------------------------------------------------------------------------------------


class TokenizerSettings(Section):
    """The tokenizer stage: text tars in, a Hugging Face tokenizer out."""

    path: str | None = None
    """Folder with a `tokenizer.json` to use as it is (GPT-2, Llama, Qwen…) in place of training one."""
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 32_768
    """Words, special tokens included."""
    pretokenizer: Literal["gpt2", "llama3", "qwen2"] = "llama3"
    """The published regex that cuts text before merges are counted."""
    sample_bytes: Annotated[int, Field(gt=0, lt=2**31)] = 1024 * 1024 * 1024
    """Training text is a sample of at most so many bytes, spread evenly over the text tars. Below 2 GiB: `tokenizers`
    counts pairs in 32 bits."""


class TokenizeSettings(Section):
    """The tokenize stage: text tars in, token tars out."""

    shard_tokens: PositiveInt = 256 * 1024 * 1024
    """A token tar is closed once it holds so many tokens."""
    member_tokens: PositiveInt = 16 * 1024 * 1024
    """A member of a token tar holds about so many tokens."""
    workers: Count = no_effect(0)
    """Processes; 0 is one a core. The output does not depend on it."""


# --- model and training --------------------------------------------------------------------------------------------


class ModelSettings(Section):
    """The network. The vocabulary comes from the tokenizer, the context length is `max_seq_len`."""

    architecture: Literal["transformer", "lstm"] = "transformer"
    dim: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    kv_heads: PositiveInt | None = None
    """Key/value heads (grouped-query attention); null: as many as heads."""
    ffn_dim: PositiveInt | None = None
    """Width of the SwiGLU layer; null: 8/3 of dim, rounded up to a multiple of 64."""
    max_seq_len: PositiveInt = 2048
    rope_theta: PositiveFloat = 10_000.0
    norm_eps: PositiveFloat = 1e-5
    tied_embeddings: bool = True
    init_std: PositiveFloat = 0.02

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelSettings:
        if self.architecture == "transformer":
            if self.dim % self.heads:
                raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
            if (self.dim // self.heads) % 2:
                raise ValueError(f"dim/heads ({self.dim // self.heads}) must be even, for rotary positions")
            if self.heads % (self.kv_heads or self.heads):
                raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class OptimizerSettings(Section):
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) with AdamW for what is not a hidden matrix."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` learns more from each token of pretraining; DeepSpeed's implementation. Gradients are then not clipped:
    its updates have one size whatever the gradient's."""
    learning_rate: PositiveFloat = 3e-4
    """Peak rate of AdamW."""
    muon_learning_rate: PositiveFloat = 0.02
    """Peak rate of Muon, whose updates are orthogonal matrices; unused by `adamw`."""
    muon_momentum: Fraction = 0.95
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegative = 0.1
    """Applied to matrices only, not to norms, biases or embeddings."""


class ScheduleSettings(Section):
    """The learning rate over the steps."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    """`wsd` is warmup-stable-decay (Hu et al. 2024, MiniCPM)."""
    warmup: Fraction = 0.02
    """Share of the steps in which the rate rises from 0."""
    decay: Fraction = 0.2
    """`wsd`: share of the steps in which it falls, linearly."""
    final: Fraction = 0.1
    """Rate at the end, as a share of the peak."""


class TrainingBase(Section):
    """What pretraining and every kind of fine-tuning share: one loop serves them all."""

    micro_batch: PositiveInt = no_effect(8)
    """Sequences a rank works on at once. Only memory and speed depend on it."""
    global_batch: PositiveInt = 256
    """Sequences an optimizer step, over all ranks."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    gradient_clip: NonNegative = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """`auto`: bf16 where the device does it fast, else fp32."""
    deepspeed: str = "zero1"
    """A file in ds_configs/ (without .json), or a path."""
    compile: Literal["auto", "yes", "no"] = no_effect("auto")
    """`torch.compile`; `auto`: on GPUs, where a C++ compiler is there."""
    ranks: Count = no_effect(0)
    """Processes on this machine when no launcher is used; 0: one a GPU, or one a core (at most 2) without GPUs."""
    validation_interval: Count = no_effect(0)
    """Steps between validations; 0: ten times in all."""
    checkpoint_minutes: PositiveFloat = no_effect(10.0)
    """Minutes between checkpoints (one more is written at the end)."""
    checkpoint_steps: Count = no_effect(0)
    """Steps between checkpoints; 0: by minutes only."""
    keep_checkpoints: PositiveInt = no_effect(2)
    log_interval: PositiveInt = no_effect(10)
    """Steps between lines in the log and points in MLflow."""


class PretrainSettings(TrainingBase):
    """The pretrain stage."""

    tokens: PositiveInt = 1_000_000_000
    """Budget: training ends with the first step that reaches it."""
    seq_len: PositiveInt = 2048
    validation_windows: Count = 256
    """Windows of seq_len tokens in each validation during training; 0: all of the validation set."""


class FinetuneTask(TrainingBase):
    """One fine-tuned model: `finetune/<task>/model`."""

    task: Literal["sft", "classify"]
    data: Literal["docstring_summaries", "docstring_packages", "jsonl"] = "jsonl"
    """`jsonl`: your files; the other two are made from Python sources in the text tars."""
    train_files: str | None = None
    """jsonl: file or glob. sft: `prompt` and `completion`; classify: `text` and `label`."""
    validation_files: str | None = None
    """jsonl: file or glob; null: a share of train_files is held out by hash."""
    validation: Fraction = 0.1
    base: str | None = None
    """Model directory to start from; null: the exported pretrained model."""
    epochs: PositiveFloat = 3.0
    max_examples: PositiveInt | None = None
    """At most so many training examples, chosen by hash."""
    max_validation_examples: PositiveInt = 1000
    seq_len: PositiveInt = 1024
    """Longer examples are cut (sft: the prompt's end; classify: the text's end) and counted."""


class ExportSettings(Section):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tolerance: PositiveFloat = 1e-4
    """Largest difference of a logit between the trained and the reloaded model, in fp32, relative to their scale."""


MADE_FOR = {"docstring_summaries": "sft", "docstring_packages": "classify"}  # what is made from the text tars
RESERVED_TASKS = ("language_model", "samples", "manifest", "building")  # evaluation/<task>.json must be the task's


class EvaluateSettings(Section):
    max_bytes: PositiveInt | None = None
    """Bytes of validation text measured, of each source its share; null: all of it."""
    context: PositiveInt | None = None
    """Tokens that a language model sees at most; null: pretrain.seq_len. Never more than the model's own limit."""
    stride: PositiveInt | None = None
    """Tokens by which that window slides, so that targets have context - stride tokens before them; null: half."""
    batch: PositiveInt = no_effect(16)
    max_examples: PositiveInt = 200
    """Held-out examples a fine-tuned model is measured on."""
    max_new_tokens: PositiveInt = 48
    prompts: tuple[str, ...] = ("def ", "import ", "class ")
    """Openings whose continuations are shown in the report."""

    @model_validator(mode="after")
    def _window_slides(self) -> EvaluateSettings:
        if self.context and self.stride and self.stride > self.context:
            raise ValueError(f"stride ({self.stride}) is longer than context ({self.context}): tokens would be skipped")
        return self


class TrackingSettings(Section):
    experiment: str | None = None
    """MLflow experiment; null: the recipe's name."""
    uri: str | None = None
    """MLflow server or store (MLFLOW_TRACKING_URI wins over it); null: a sqlite file in the run's parent folder."""
    enabled: bool = True
    register_model: bool = True


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
    finetune: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], FinetuneTask] = {}
    evaluate: EvaluateSettings = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _default_workdir(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("workdir"):
            values = {**values, "workdir": Path("runs") / str(values.get("name", "run"))}
        return values

    @model_validator(mode="after")
    def _task_names_are_free(self) -> Recipe:
        for name in self.finetune:
            if name in RESERVED_TASKS:
                raise ValueError(f"finetune.{name}: evaluation/{name}.json is another file's name; rename the task")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Recipe:
        if self.pretrain.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"pretrain.seq_len ({self.pretrain.seq_len}) is longer than model.max_seq_len "
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
    def _tasks_have_data(self) -> Recipe:
        for name, task in self.finetune.items():
            if task.data == "jsonl" and not task.train_files:
                raise ValueError(f"finetune.{name}.train_files is not set; give a file or a glob pattern of JSON lines")
            if task.data != "jsonl" and task.task != MADE_FOR[task.data]:
                raise ValueError(
                    f"finetune.{name}: data {task.data} is for task {MADE_FOR[task.data]}, not {task.task}"
                )
        return self

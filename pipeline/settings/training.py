"""The `pretrain:`, `finetune:` and `export:` sections of a recipe: how a network learns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.settings.grid import GridSettings
from pipeline.settings.section import Count, Fraction, NonNegative, Section, no_effect


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


class WatchdogSettings(Section):
    """When a training is held to hang, and a rank to be slow. Nothing here changes what is learnt."""

    hang_factor: PositiveFloat = 20.0
    """A step hangs when it takes so many times the median step …"""
    hang_seconds: NonNegative = 120.0
    """… and no less than so many seconds; 0: nothing is ever held to hang."""
    phase_seconds: PositiveFloat = 1500.0
    """Limit of whatever is not a step: start-up, the first steps (compilation), a validation, a save. Torch itself
    gives up after 1,800 seconds."""
    heartbeat_seconds: PositiveFloat = 5.0
    """Between two heartbeats of a rank, in the stage's folder `heartbeats/`."""
    slow_factor: PositiveFloat = 1.3
    """A rank is slow when its own part of a step takes so many times the median of all ranks …"""
    slow_intervals: PositiveInt = 3
    """… in so many log intervals running."""


class LossPolicy(Section):
    """What happens when a step goes wrong: every rank skips it, or training goes back and passes the data over.

    A run in which nothing goes wrong does not depend on these; what went wrong is told in final.json and audit.jsonl.
    """

    enabled: bool = no_effect(True)
    """`no`: the first loss that is not finite ends the run."""
    window: PositiveInt = no_effect(100)
    """Steps whose losses give the running scale: their median, and the median distance from it (MAD)."""
    least_steps: PositiveInt = no_effect(50)
    """Steps that must be in the window before a spike can be told from the first steps of a run."""
    deviations: PositiveFloat = no_effect(8.0)
    """A loss is too high at so many MADs above the median (1.48 MAD: one standard deviation of a normal noise) …"""
    rise: NonNegative = no_effect(0.5)
    """… and at least by so much, in nats, …"""
    spike_steps: PositiveInt = no_effect(3)
    """… in so many steps in a row: a single odd batch is no spike."""
    skips_in_a_row: PositiveInt = no_effect(5)
    """So many steps in a row that had to be skipped count as a spike."""
    margin: Count = no_effect(10)
    """Steps before a spike whose data is passed over with it: what did the harm came earlier."""
    most_rollbacks: Count = no_effect(5)
    """Spikes that are answered by going back; one more ends the run."""

    @model_validator(mode="after")
    def _window_holds_the_steps(self) -> LossPolicy:
        if self.least_steps > self.window:
            raise ValueError(f"least_steps ({self.least_steps}) must not be more than window ({self.window})")
        return self


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
    deepspeed: str = no_effect("zero1")
    """A file in ds_configs/ (without .json), or a path. A run may go on with another one."""
    compile: Literal["auto", "yes", "no"] = no_effect("auto")
    """`torch.compile`, block by block; `auto`: where a C++ compiler is there, on GPUs, and on a CPU for our Transformer
    when a rank's whole training is more than 2.5e14 operations (ten minutes and more)."""
    compile_cache: str = no_effect("")
    """Folder of what was compiled, for later starts, all ranks and other runs; empty: ~/.cache/headwater/compiled."""
    activation_checkpointing: Literal["none", "selective", "full"] = no_effect("none")
    """What the forward pass made and the backward pass needs: kept; the cheap part of it computed twice; all but each
    block's input computed twice (a third more operations). The same numbers, for less memory."""
    ranks: Count = no_effect(0)
    """Processes on this machine when no launcher is used; 0: one a GPU, or one a core (at most 2) without GPUs."""
    validation_interval: Count = no_effect(0)
    """Steps between validations; 0: ten times in all."""
    checkpoint_minutes: PositiveFloat = no_effect(10.0)
    """Minutes between checkpoints (one more is written at the end)."""
    checkpoint_steps: Count = no_effect(0)
    """Steps between checkpoints; 0: by minutes only."""
    keep_checkpoints: PositiveInt = no_effect(2)
    """The newest that stay on disk."""
    keep_every: Count = no_effect(0)
    """Steps: the first checkpoint after each multiple stays for good; 0: none."""
    log_interval: PositiveInt = no_effect(10)
    """Steps between lines in the log and points in MLflow."""
    max_hours: PositiveFloat | None = no_effect(None)
    """Stop in time to save within so many hours, to be continued; null: only before Slurm ends the job."""
    self_test: bool = no_effect(True)
    """Compare this machine's DeepSpeed with plain torch on a tiny model before training (seconds)."""
    loss_policy: LossPolicy = no_effect(LossPolicy())
    watchdog: WatchdogSettings = no_effect(WatchdogSettings())


class Phase(Section):
    """A later part of pretraining that differs from what was before; what is null stays as it is."""

    from_tokens: PositiveInt
    """It begins with the first step after so many tokens."""
    global_batch: PositiveInt | None = None
    seq_len: PositiveInt | None = None
    """Where it differs, sources are cut into other windows, and each begins a new pass."""
    weights: dict[str, PositiveFloat] | None = None
    """Of sources by name; those that are not named keep theirs. Each source goes on with its next window."""


class PretrainSettings(TrainingBase):
    """The pretrain stage."""

    tokens: PositiveInt = 1_000_000_000
    """Budget: training ends with the first step that reaches it."""
    seq_len: PositiveInt = 2048
    validation_windows: Count = 256
    """Windows of seq_len tokens in each validation during training; 0: all of the validation set."""
    documents: Literal["join", "mask"] = "join"
    """`mask`: a token attends to its own document only, and positions begin anew with each."""
    packing: Literal["cut", "best_fit"] = "cut"
    """`best_fit`: whole documents side by side, best fit first, then padding, the share of which is told; `cut`: the
    tokens in a row, cut where a window ends. Budgets count places of windows, padding included."""
    phases: tuple[Phase, ...] = ()
    """Changes of batch, length or mix on the way. One may be added while the run is half done, ahead of where it is:
    the same command then goes on into it."""
    shuffle_tokens: Count = 0
    """The order is shuffled within stretches of so many tokens of a source; 0: over all of it. For remote tokens that
    do not fit on the local disk: about one stretch a source is needed at a time."""
    tokens_from: str | None = None
    """A folder or URL (s3://, gs://, http://, …) with token tars and their index, in place of the run's own tokens/."""
    cache: str = no_effect("")
    """Local folder for shards of a remote `tokens_from`; empty: ~/.cache/headwater."""
    cache_bytes: Count = no_effect(200_000_000_000)
    """The largest that folder may become, in bytes; 0: no bound."""
    verify: Literal["first_touch", "always", "never"] = no_effect("first_touch")
    """Checksums of token tars: once a host, behind the training; `always`: at each start, before a tar is used."""
    bad_shards: Literal["fail", "skip"] = no_effect("fail")
    """A token tar that is missing or damaged ends the run, or every rank leaves its windows out from then on."""

    def wrong_weights(self, sources: Collection[str]) -> str:
        """What is wrong with the phases where these are the sources; empty when nothing is."""
        for phase in self.phases:
            if unknown := sorted(set(phase.weights or {}) - set(sources)):
                return (
                    f"pretrain.phases: weights of {', '.join(unknown)}: no such source; there are {', '.join(sources)}"
                )
        return ""

    @model_validator(mode="after")
    def _phases_in_order(self) -> PretrainSettings:
        starts = [phase.from_tokens for phase in self.phases]
        if starts != sorted(set(starts)) or (starts and starts[-1] >= self.tokens):
            raise ValueError(
                f"phases: from_tokens must rise, and stay below tokens ({self.tokens:,}); they are {starts}"
            )
        return self


class LoraSettings(Section):
    """Adapters (Hu et al. 2021) in place of all weights: alone in `finetune/<task>/adapter`, merged in its model/."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The adapters' part is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Of what the adapters read."""


class FinetuneTask(TrainingBase):
    """One fine-tuned model: `finetune/<task>/model`."""

    task: Literal["sft", "classify", "seq2seq", "continue"]
    """`sft`: answers to prompts, or chats; `classify`: labels or numbers of texts; `seq2seq`: a text from a text, by an
    encoder–decoder, or by a decoder with a prompt; `continue`: more pretraining of a decoder, on plain text."""
    data: Literal["docstring_summaries", "docstring_packages", "jsonl", "csv", "parquet", "datasets", "text_tars"] = (
        "jsonl"
    )
    """Form of your files, or `datasets` for a data set's folder or hub name (`name#split`); the first two are made from
    Python sources in the text tars. `continue`: `text_tars`, its default, or a form of rows."""
    train_files: str | None = None
    """File or glob. Columns: sft `prompt` and `completion`, or `messages`; classify `text` and `label`, `text_pair`
    for pairs of texts, `group` to evaluate by groups; seq2seq `source` and `target`; continue `text`. `text_tars`: a
    file, folder or glob, by default the run's own text/."""
    validation_files: str | None = None
    """File or glob; null: a share of train_files is held out by hash (of text tars under train/ and validation/ those
    under validation/)."""
    columns: dict[str, str] = Field({})
    """Names in your files where they are others: {text: sentence1, text_pair: sentence2}."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """classify: one label a text; any number of labels (a list); a number."""
    class_weights: Literal["none", "balanced"] = "none"
    """classify: `balanced` lets each label count alike, however rare."""
    packing: bool = False
    """sft, and seq2seq by a decoder: examples side by side in rows of seq_len tokens, none seeing another. global_batch
    and micro_batch then count rows."""
    prompt: str = "{source}"
    """seq2seq: what the model is given, with {source} where the text goes."""
    validation: Fraction = 0.1
    """Share of the examples (continue: of the documents) that is held out."""
    base: str | None = None
    """A Hugging Face model directory, or a hub name (`name@revision`), to start from; null: the pretrained model."""
    trust_remote_code: bool = False
    """Run Python code that the base's directory brings along. Only for code that you have read."""
    dropout: bool = True
    """The base's own dropout; `no`: none."""
    lora: LoraSettings | None = None
    """`lora: {}` learns small adapters beside the frozen base; null: all weights are learnt."""
    epochs: PositiveFloat = 3.0
    best_by: Literal["", "loss", "accuracy", "macro_f1", "rmse"] = ""
    """Keep the weights of the validation that is best by this held-out number (classify: accuracy and macro_f1;
    regression: rmse); empty: the last."""
    grid: GridSettings | None = None
    """`grid: {learning_rate: [1e-4, 1e-3]}` trains every combination and keeps the one whose kept weights are best by
    best_by, or by the held-out loss."""
    patience: Count = 0
    """End after so many validations in a row that are no better (early stopping, with best_by); 0: train all epochs."""
    max_examples: PositiveInt | None = None
    """At most so many training examples, chosen by hash."""
    max_validation_examples: PositiveInt = 1000
    """continue: windows of seq_len tokens that a validation measures."""
    seq_len: PositiveInt = 1024
    """Longer examples are cut (sft: the prompt's end; others: the text's end) and counted. seq2seq: of the source, and
    of the target, which is left out where it is longer. continue: length of the windows."""

    @property
    def reads_text(self) -> bool:
        """Whether it learns from the text tars that the run itself makes."""
        return self.data.startswith("docstring") or (self.data == "text_tars" and not self.train_files)

    def settings(self) -> dict[str, Any]:
        """Where the best validation decides, so does how often there is one."""
        found = super().settings()
        if not self.packing:  # what was made before there was such a key is what it makes
            del found["packing"]
        if self.grid is None:
            del found["grid"]
        return found | ({"validation_interval": self.validation_interval} if self.best_by else {})

    def combinations(self) -> dict[str, FinetuneTask]:
        """Name of each combination of the grid → this task with its values, and no grid; {} without one."""
        return {name: self._with(values) for name, values in (self.grid.combinations() if self.grid else {}).items()}

    def _with(self, values: dict[str, float]) -> FinetuneTask:
        optimizer, lora = self.optimizer, self.lora
        if "learning_rate" in values:
            optimizer = optimizer.model_copy(update={"learning_rate": values["learning_rate"]})
        if lora and "rank" in values:
            lora = lora.model_copy(update={"rank": values["rank"]})
        chosen = {"epochs": values.get("epochs", self.epochs), "optimizer": optimizer, "lora": lora}
        return self.model_copy(update={**chosen, "grid": None})

    @model_validator(mode="after")
    def _grid_fits(self) -> FinetuneTask:
        if self.grid and self.grid.rank and self.lora is None:
            raise ValueError("grid.rank: there are no adapters to give a rank; add `lora: {}`, or take rank out")
        if self.grid and self.grid.learning_rate and self.optimizer.name != "adamw":
            raise ValueError(f"grid.learning_rate is that of adamw, and optimizer.name is {self.optimizer.name}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _form_of_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "continue":
            return {"data": "text_tars", **values}
        return values

    @model_validator(mode="after")
    def _forms_fit(self) -> FinetuneTask:
        if self.data == "text_tars" and self.task != "continue":
            raise ValueError(f"data: text_tars is for task continue, not {self.task}; give rows (jsonl, csv, …)")
        if self.task == "continue" and self.data.startswith("docstring"):
            raise ValueError(
                f"data: {self.data} is not for task continue; take text_tars (the shard stage makes them of whatever "
                "corpus.sources can read), jsonl, csv, parquet or datasets"
            )
        if self.task == "continue" and self.max_examples is not None:
            raise ValueError("max_examples: continue reads all documents; give it fewer files, or fewer epochs")
        if self.packing and self.task not in ("sft", "seq2seq"):
            raise ValueError(
                f"packing is for task sft, and for seq2seq by a decoder, not {self.task}"
                + ("; its documents fill their windows anyway" if self.task == "continue" else "")
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> FinetuneTask:
        known = {"single_label": ("loss", "accuracy", "macro_f1"), "regression": ("loss", "rmse")}
        known["multi_label"] = known["single_label"]
        numbers = known[self.problem] if self.task == "classify" else ("loss",)
        if self.best_by and self.best_by not in numbers:
            raise ValueError(f"best_by: {self.best_by} is not measured here; take one of {', '.join(numbers)}")
        if self.patience and not self.best_by:
            raise ValueError("patience needs best_by: the number that must become better")
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> FinetuneTask:
        known = {
            "sft": ("prompt", "completion", "messages", "id"),
            "classify": ("text", "text_pair", "label", "group", "id"),
            "seq2seq": ("source", "target", "id"),
            "continue": ("text", "id"),
        }[self.task]
        for name in self.columns:
            if name not in known:
                raise ValueError(f"columns: '{name}' is no column of task {self.task}; those are {', '.join(known)}")
        if self.task == "seq2seq" and "{source}" not in self.prompt:
            raise ValueError("prompt must hold {source}, where the text goes")
        if self.prompt != "{source}" and self.task != "seq2seq":
            raise ValueError(f"prompt is for task seq2seq, not {self.task}; take it out")
        if self.problem != "single_label" and self.task != "classify":
            raise ValueError(f"problem: {self.problem} is for task classify, not {self.task}")
        if self.class_weights != "none" and (self.task != "classify" or self.problem == "regression"):
            here = "problem: regression" if self.task == "classify" else f"task {self.task}"
            raise ValueError(f"class_weights is for labels, and {here} has none; take it out")
        return self


class ExportSettings(Section):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shard_bytes: PositiveInt = 5_000_000_000
    """Weights in one file at most, in bytes. Export needs memory for about one such file, whatever the model."""
    tolerance: PositiveFloat = 1e-4
    """Largest difference of a logit between the trained and the reloaded model, in fp32, relative to their scale."""

"""The `evaluate:` and `tracking:` sections of a recipe."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt, model_validator

from pipeline.settings.section import Section, no_effect


class HarnessSettings(Section):
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, by name or as files (*.yaml); none: no such stage."""
    fewshot: NonNegativeInt | None = None
    """Solved examples before each question; null: as the task says."""
    limit: PositiveInt | None = None
    """At most so many questions of each task."""


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
    harness: HarnessSettings = no_effect(HarnessSettings())

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

"""The `tokenizer:` and `tokenize:` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pipeline.settings.section import Count, Fraction, Section, no_effect


class TokenizerSettings(Section):
    """The tokenizer stage: text tars in, a Hugging Face tokenizer out."""

    path: str | None = None
    """Folder with a `tokenizer.json` to use as it is (GPT-2, Llama, Qwen…) in place of training one."""
    continue_from: str | None = None
    """The same, but `added_tokens` that it lacks get ids behind its own, which stay as they are."""
    added_tokens: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = (
        "<|pad|>",
        "<|im_start|>",
        "<|im_end|>",
    )
    """Special tokens for `continue_from`; the default is what ChatML needs."""
    eos_token: str | None = None
    """The token that ends every text, where the given tokenizer's own files name none, or another one."""
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 32_768
    """Words, special tokens included."""
    pretokenizer: Literal["gpt2", "llama3", "qwen2"] = "llama3"
    """The published regex that cuts text before merges are counted."""
    sample_bytes: Annotated[int, Field(gt=0, lt=2**31)] = 1024 * 1024 * 1024
    """Training text is a sample of at most so many bytes, spread evenly over the text tars, and over the languages of
    each source. Below 2 GiB: `tokenizers` counts pairs in 32 bits."""
    compare: tuple[str, ...] = no_effect(())
    """Folders of other tokenizers, whose bytes per token stand beside ours in tokenizer/report.json and report.html.
    Measured when the tokenizer is made."""

    @property
    def given(self) -> str | None:
        """The folder of a tokenizer that is taken over, with tokens added or not."""
        return self.path or self.continue_from

    @model_validator(mode="after")
    def _one_is_given(self) -> TokenizerSettings:
        if self.path and self.continue_from:
            raise ValueError("tokenizer.path and tokenizer.continue_from are both set; keep one of them")
        if self.eos_token and not self.given:
            raise ValueError(
                "tokenizer.eos_token is for a given tokenizer (tokenizer.path); one that is trained has its own"
            )
        return self


class TokenImport(Section):
    """Tokens that another program made, taken in beside those of the corpus: a source of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=64)]
    """As the name of a source of text."""
    path: Annotated[str, Field(min_length=1)]
    """File, folder or glob. Of Megatron's pairs `x.bin` and `x.idx` either may be named, or `x`."""
    format: Literal["megatron", "npy", "raw"]
    """Megatron's MMIDIDX pairs; 1-D `.npy` arrays; or bare little-endian integers of `dtype`."""
    dtype: Literal["uint16", "uint32", "int32", "int64"] | None = None
    """Of `raw` files."""
    validation: Fraction = 0.001
    """Share of its documents held out, chosen by a hash of where they stand."""
    weight: PositiveFloat = no_effect(1.0)
    """How often its tokens are seen in pretraining, relative to sources of weight 1."""

    @model_validator(mode="after")
    def _raw_has_a_type(self) -> TokenImport:
        if (self.dtype is not None) != (self.format == "raw"):
            raise ValueError(
                f"import {self.name}: dtype is for format raw, which needs it; the other formats state their own"
            )
        return self


class TokenizeSettings(Section):
    """The tokenize stage: text tars in, token tars out."""

    shard_tokens: PositiveInt = 256 * 1024 * 1024
    """A token tar is closed once it holds so many tokens."""
    member_tokens: PositiveInt = 16 * 1024 * 1024
    """A member of a token tar holds about so many tokens."""
    shuffle: bool = True
    """Shuffle the documents of each source once, by the recipe's seed, on disk: needs room for the tokens twice. The
    stream shuffles windows in any case; this keeps neighbours of the corpus from sharing one."""
    imports: tuple[TokenImport, ...] = ()
    """Token files of other programs; `tokenizer.path` names the tokenizer that made them."""
    workers: Count = no_effect(0)
    """Processes; 0 is one a core. The output does not depend on it."""

    @property
    def passes(self) -> tuple[str, ...]:
        """The parallel steps of the stage: each is a round of tasks that begins when the one before is done."""
        return ("encode", "shuffle") if self.shuffle else ("encode",)

    @field_validator("imports")
    @classmethod
    def _names_differ(cls, value: tuple[TokenImport, ...]) -> tuple[TokenImport, ...]:
        names = [one.name for one in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two imports are named '{name}'; give each its own name")
        return value

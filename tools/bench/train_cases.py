"""What `train` measures: models of several sizes, and who trains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import load_recipe
from pipeline.model.build import flops_per_token, parameter_count
from pipeline.recipe import ModelSettings

KINDS = {
    "ours": "Headwater",
    "torch": "plain torch",
    "torch-bf16": "plain torch, all in bf16",  # AdamW's state too: less memory, and small updates are lost
    "trainer": "Hugging Face Trainer, DeepSpeed",
}
ON_CPU = ("torch", "torch-compiled", "ours", "ours-compiled", "ours:2", "ours-compiled:2", "trainer", "trainer:2")
ON_GPU = ("torch-compiled", "ours-compiled", "trainer")
GPU_LENGTHS = (2048, 4096)
# Recipe → tokens of a micro-batch that fit beside everything else on 139 GiB, and micro-batches of a step: what is
# left of the recipe's global batch on one of the GPUs that it is for.
GPU_SIZES = {"125m": (65_536, 4), "1b": (16_384, 8), "7b": (4_096, 16)}
GPU_SETTINGS = {"7b": ("activation_checkpointing=selective",)}  # of our loop, when no others are asked for
# Of dense bf16 products, FLOP/s: NVIDIA's data sheets. By a word in the device's name.
PUBLISHED = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12}


@dataclass(frozen=True)
class Size:
    """A model, and a step of it: `sequences` of `length` tokens, at most `micro` at once on a rank."""

    name: str
    model: ModelSettings
    words: int
    length: int
    sequences: int
    micro: int

    @property
    def flops(self) -> float:
        """Of a token, forward and backward: model/build.py says how they are counted."""
        return flops_per_token(self.model, self.words, self.length)

    @property
    def title(self) -> str:
        """A line above its table."""
        return (
            f"{self.name}: {parameter_count(self.model, self.words):,} weights, {self.length:,} tokens a sequence, "
            f"{self.sequences * self.length:,} a step, {self.flops / 1e9:.3g} GFLOP a token"
        )


@dataclass(frozen=True)
class Case:
    """One training. kind: of KINDS; compiled: whether by torch.compile; settings: more of our loop's, `key=value`."""

    size: Size
    kind: str
    compiled: bool
    ranks: int
    dtype: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In the table."""
        many = f"{self.ranks} rank{'s' * (self.ranks > 1)}" if self.kind in ("ours", "trainer") else ""
        return ", ".join(word for word in (KINDS[self.kind], many, "compiled" * self.compiled, *self.settings) if word)

    def told(self) -> dict[str, Any]:
        """As JSON types, for the process that trains."""
        return asdict(self) | {"size": asdict(self.size) | {"model": self.size.model.model_dump(exclude={"base"})}}

    @classmethod
    def read(cls, told: dict[str, Any]) -> Case:
        """Of `told`."""
        size = told["size"] | {"model": ModelSettings.model_validate(told["size"]["model"])}
        return cls(**told | {"size": Size(**size), "settings": tuple(told["settings"])})


def sizes(names: Sequence[str], gpus: int, sequences: int, micro: int) -> list[Size]:
    """Sizes by name; none named: those for this machine. sequences, micro: other than usual where they are not 0.

    Raises: SystemExit naming one that there is not.
    """
    known = {size.name: size for size in (*_small(), *(_of_recipe(name, length) for name, length in _gpu_sizes()))}
    for name in names:
        if name not in known:
            raise SystemExit(f"no size {name}; there are {', '.join(known)}")
    usual = [f"{name}-{length}" for name, length in _gpu_sizes()] if gpus else ["33m"]
    chosen = [known[name] for name in names or usual]
    return [
        Size(size.name, size.model, size.words, size.length, sequences or size.sequences, micro or size.micro)
        for size in chosen
    ]


def cases(size: Size, names: Sequence[str], gpus: int, dtype: str, settings: Sequence[str] = ()) -> list[Case]:
    """Contenders, each as `KIND[-compiled][:RANKS]`; none named: those for this machine and size.

    Raises: SystemExit naming one that there is not.
    """
    usual: Sequence[str] = ON_GPU if gpus else ON_CPU
    settings = settings or GPU_SETTINGS.get(size.name.partition("-")[0], ())
    if gpus and size.name.startswith("7b"):  # fp32 weights, their gradients and AdamW's state alone take 116 GB
        usual = ("torch-bf16-compiled", *usual)
    found = []
    for name in names or usual:
        kind, _, ranks = name.partition(":")
        compiled = kind.endswith("-compiled")
        kind = kind.removesuffix("-compiled")
        if kind not in KINDS or not (ranks or "1").isdecimal() or (ranks and kind.startswith("torch")):
            raise SystemExit(f"no contender {name}; there are KIND, KIND-compiled of {', '.join(KINDS)}; :RANKS behind")
        found.append(Case(size, kind, compiled, int(ranks or 1), dtype, tuple(settings) if kind == "ours" else ()))
    return found


def published_peak(device: str) -> float | None:
    """FLOP/s of dense bf16 products on a GPU by its name, where its maker's number is known here."""
    return next((peak for word, peak in PUBLISHED.items() if word in device), None)


def _small() -> list[Size]:
    tiny = ModelSettings(dim=64, layers=2, heads=2, max_seq_len=32)
    facts = ModelSettings(dim=512, layers=8, heads=8, max_seq_len=512)
    small = load_recipe("125m").model
    return [
        Size("tiny", tiny, 256, 32, 4, 2),  # for tests
        Size("33m", facts, 16_384, 512, 8, 4),
        Size("125m-512", small, 32_768, 512, 1, 1),  # a step of it is nothing beside its compilation: --first-step
    ]


def _gpu_sizes() -> list[tuple[str, int]]:
    return [(name, length) for name in GPU_SIZES for length in GPU_LENGTHS]


def _of_recipe(name: str, length: int) -> Size:
    """A shipped recipe's model, at another length."""
    recipe = load_recipe(name)
    tokens, accumulation = GPU_SIZES[name]
    micro = tokens // length
    model = recipe.model.model_copy(update={"max_seq_len": max(length, recipe.model.max_seq_len)})
    return Size(f"{name}-{length}", model, recipe.tokenizer.vocab_size, length, accumulation * micro, micro)

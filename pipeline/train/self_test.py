"""A few seconds before training: is this DeepSpeed known to be wrong, do all ranks mean the same, are gradients right?

The gradients are those of the very configuration that will train (ZeRO stage, offload, precision, number of ranks),
with two micro-batches a step, on a tiny model that uses one of its layers twice and ties its embeddings: what issues
7718 and 8224 of DeepSpeed got wrong. Its optimizer is AdamW with an epsilon so large that an update is the gradient's
running mean over it: AdamW itself would hide a gradient that is wrong by a factor.
"""

from __future__ import annotations

import copy
import hashlib
import math
import platform
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipeline
from pipeline.cluster.device import Device
from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault
from pipeline.recipe import LossPolicy, OptimizerSettings, ScheduleSettings, TrainingBase
from pipeline.train import engine as deepspeed_engine
from pipeline.train.collective import gather
from pipeline.train.steps import Steps
from pipeline.train.task import Batch, ReduceSum

Version = tuple[int, ...]
# First and last version, what is wrong there.
WRONG: tuple[tuple[Version, Version, str], ...] = (
    ((0, 12, 4), (0, 13, 5), "gradients of norm 1 or NaN with bf16 (DeepSpeed's issue 5242)"),
    ((0, 14, 3), (0, 14, 3), "gradients that are zero (DeepSpeed's issue 5692)"),
    ((0, 17, 6), (0, 18, 2), "ZeRO-2 gradients without some micro-batches (DeepSpeed's issue 7718)"),
    ((0, 18, 3), (0, 19, 3), "ZeRO-2 gradients without some of a layer that is used twice (DeepSpeed's issue 8224)"),
)
GOOD = "0.19.8"

WORDS, WIDTH, LENGTH = 24, 16, 6  # the tiny model
ACCUMULATION, STEPS, RATE, EPSILON = 2, 2, 0.2, 0.1
# Largest difference of the logits' change from plain torch's in fp32, relative to the change's size. Measured: 2e-6 in
# fp32, 0.02 in bf16; a lost micro-batch or rank gives more than 0.3.
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def check_version(version: str = "") -> None:
    """version: empty for the one that is installed. Raises: EnvironmentFault for a DeepSpeed that is known to compute
    something wrong."""
    version = version or metadata.version("deepspeed")
    numbers = tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:3] if part.isdecimal())
    for first, last, what in WRONG:
        if first <= numbers <= last:
            raise EnvironmentFault(f"deepspeed {version} computes {what}; install {GOOD} or newer")


def check_agreement(fingerprint: str, settings: TrainingBase, device: Device, compiled: bool, ranks: Ranks) -> None:
    """Data, recipe, code, libraries and kind of numbers are the same on every rank. All ranks together.

    fingerprint: of the task: its data and what must not change. compiled: whether this rank compiles the model.
    Raises: EnvironmentFault naming ranks and hosts.
    """
    mine = {
        "data or recipe": fingerprint,
        "training settings": hashlib.sha256(settings.model_dump_json().encode()).hexdigest(),
        f"code ({Path(pipeline.__file__).parent})": code_hash(),
        **{f"version of {name}": metadata.version(name) for name in ("torch", "deepspeed", "numpy")},
        "version of Python": platform.python_version(),
        # With precision=auto a host's processor decides: gradients of two types cannot be summed.
        "kind of device": device.kind,
        "precision": str(deepspeed_engine.precision(settings, device)).removeprefix("torch."),
        # With compile=auto a host's compiler decides.
        "choice of compile": "yes" if compiled else "no",
    }
    problem = disagreement(gather((socket.gethostname(), mine)))
    if problem:
        raise EnvironmentFault(problem)


def disagreement(found: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """In words, the first thing in which ranks (host, name → value) differ from most others; empty: they agree."""
    for name in found[0][1]:
        values = [each.get(name, "") for _, each in found]
        usual = max(values, key=values.count)  # of a tie, rank 0's
        others = [
            f"rank {rank} on {host}"
            for rank, ((host, _), value) in enumerate(zip(found, values, strict=True))
            if value != usual
        ]
        if others:
            shown = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
            value = next(value for value in values if value != usual)
            return (
                f"{shown}: another {name} than the other ranks ({value[:12]}, not {usual[:12]}); give all hosts the "
                "same files and environment" + (", or set precision=fp32" if name == "precision" else "")
            )
    return ""


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Names the content of the package's Python files."""
    root, digest = Path(pipeline.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def check_gradients(settings: TrainingBase, device: Device, dtype: torch.dtype, ranks: Ranks) -> float:
    """Two steps of the tiny model by DeepSpeed and by plain torch. All ranks together. Returns their difference.

    Raises: EnvironmentFault when it is larger than rounding explains.
    """
    task = _TinyTask(2 * ACCUMULATION * ranks.world_size)
    reference = copy.deepcopy(task.model).to(device.torch_device)
    chosen = TrainingBase(
        micro_batch=2,
        global_batch=task.sequences,
        optimizer=OptimizerSettings(learning_rate=RATE, epsilon=EPSILON, weight_decay=0.0),
        schedule=ScheduleSettings(name="constant", warmup=0.0),
        gradient_clip=0.0,
        precision=settings.precision,
        deepspeed=settings.deepspeed,
        loss_policy=LossPolicy(enabled=False),
    )
    plan = deepspeed_engine.Plan(ranks.world_size, 2, ACCUMULATION, dtype, compile=False)
    engine = deepspeed_engine.start(task.model, chosen, device, plan)
    try:
        every = {name: value.to(device.torch_device) for name, value in task.batch(range(task.sequences)).items()}
        with torch.no_grad():
            before = reference(every["inputs"]).float()
        steps = Steps(task, engine, chosen, ranks, device.torch_device, 2, ACCUMULATION)
        steps.begin(0)
        for step in range(STEPS):
            steps.do(step)
        steps.close()
        with torch.no_grad():
            found = engine(every["inputs"]).float() - before
        expected = _plain_torch(reference, task, device.torch_device) - before
    finally:
        engine.destroy()
    difference = float((found - expected).norm() / expected.norm())
    worst = max(value if math.isfinite(value) else math.inf for value in gather(difference))  # NaN is the worst
    if not worst <= ALLOWED[dtype]:
        raise EnvironmentFault(
            f"self-test: {settings.deepspeed} of deepspeed {metadata.version('deepspeed')} on {ranks.world_size} ranks "
            f"({dtype}) does not learn what plain torch does: a relative difference of {worst:.2g}, allowed are "
            f"{ALLOWED[dtype]:.2g}; take another ZeRO stage (deepspeed=zero1), another version of deepspeed or torch, "
            "or switch the test off (self_test=no)"
        )
    return worst


def _plain_torch(model: nn.Module, task: _TinyTask, device: torch.device) -> Tensor:
    """The logits after the same steps, each on the whole batch at once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=EPSILON, weight_decay=0.0)
    for step in range(STEPS):
        numbers = range(step * task.sequences, (step + 1) * task.sequences)
        batch = {name: value.to(device) for name, value in task.batch(numbers).items()}
        (task.loss_sum(model, batch) / task.targets(step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits: Tensor = model(task.batch(range(task.sequences))["inputs"].to(device))
    return logits.float()


class _TinyModel(nn.Module):
    """Tokens (batch, length) to logits (batch, length, WORDS)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        for weight in (self.embedding.weight, self.layer.weight):
            nn.init.normal_(weight, std=0.3, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for _ in range(2):
            hidden = hidden + torch.tanh(self.layer(self.norm(hidden)))
        return F.linear(hidden, self.embedding.weight)


class _TinyTask:
    """Random tokens; the target of each is another function of it at each place: something to learn."""

    name, tokens_per_step, flops_per_step, fingerprint, steps = "self-test", 1, 1.0, "", STEPS

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.model: nn.Module = _TinyModel()

    def targets(self, step: int) -> int:
        return self.sequences * LENGTH

    def batch(self, sequences: Sequence[int]) -> Batch:
        rows = [torch.randint(WORDS, (LENGTH,), generator=torch.Generator().manual_seed(n)) for n in sequences]
        tokens = torch.stack(rows)
        return {"inputs": tokens, "targets": (tokens * 5 + torch.arange(LENGTH)) % WORDS}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["inputs"]).float()
        return F.cross_entropy(logits.view(-1, WORDS), batch["targets"].view(-1), reduction="sum")

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        return {}

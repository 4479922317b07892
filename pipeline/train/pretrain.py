"""The pretrain stage: token tars in, trained weights out.

Output: `checkpoints/final/weights.safetensors` (fp32, our model's parameter names, a tied weight once),
`checkpoints/final/final.json` (what was trained and how well), `checkpoints/final/losses.json` (mean loss of each
step in nats). Held-out numbers by step depend on `validation_interval` and stand in `checkpoints/losses.jsonl`. Beside
them stays the last checkpoint, with the optimizer's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.cluster.ranks import ALONE, Ranks, read_ranks
from pipeline.files import TEMPORARY, disk_errors, fingerprint, sync_directory, sync_file, write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model, flops_per_token, parameter_count
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import Stream
from pipeline.tokens.validation import ValidationWindows
from pipeline.tracking import Tracker
from pipeline.train import checkpoints
from pipeline.train.collective import manifest_of_rank_0
from pipeline.train.loop import Batch, ReduceSum, TrainResult, train

FINAL = "final"
IGNORE = -100  # a target that does not count


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Pretrain, or continue to. Every rank calls it; rank 0 writes."""
    ranks = read_ranks() or ALONE
    data = TokenData.open(recipe.workdir / "tokens")
    task = PretrainTask(recipe, data)
    parameters = parameter_count(recipe.model, data.vocab_size)
    if ranks.first:
        log.info(
            f"pretrain: {parameters:,} parameters ({recipe.model.architecture}), {task.steps:,} steps of "
            f"{task.tokens_per_step:,} tokens; {data.tokens('train'):,} training tokens, "
            f"{task.steps * task.sequences / task.stream.windows:.2f} epochs"
        )
    tracker.log_params({"parameters": parameters, "vocab_size": data.vocab_size, "steps": task.steps})
    result = train(task, recipe.pretrain, work.folder, recipe.seed, ranks, tracker)
    if not ranks.first:
        return manifest_of_rank_0(work)
    outputs = write_final(recipe, work.folder, task, result)
    checkpoints.prune(work.folder, keep=1)
    validation = result.validations[result.steps]
    return work.finish(
        outputs,
        counts={
            "parameters": parameters,
            "steps": result.steps,
            "tokens": result.steps * task.tokens_per_step,
            "vocab_size": data.vocab_size,
            "world_size": result.world_size,
        },
        metrics={
            "loss": mean_of_last(result.losses),
            **{f"validation/{name}": value for name, value in validation.items()},
            **result.metrics,
        },
    )


class PretrainTask:
    """Next-token prediction over windows of the token stream; a `Task` of the training loop."""

    name = "pretrain"

    def __init__(self, recipe: Recipe, data: TokenData) -> None:
        settings = recipe.pretrain
        self.data, self.seq_len = data, settings.seq_len
        weights = {source.name: source.weight for source in recipe.corpus.sources}
        self.stream = Stream(data, settings.seq_len, recipe.seed, weights)
        self.model = build_model(recipe.model, data.vocab_size, recipe.seed)
        self.sequences = settings.global_batch
        self.tokens_per_step = settings.global_batch * settings.seq_len
        self.steps = math.ceil(settings.tokens / self.tokens_per_step)
        self.flops_per_step = flops_per_token(recipe.model, data.vocab_size, settings.seq_len) * self.tokens_per_step
        self.fingerprint = fingerprint(
            [self.stream.fingerprint, recipe.model.settings(), settings.settings(), recipe.seed]
        )
        self.windows = ValidationWindows(data, settings.seq_len)
        self.micro_batch = settings.micro_batch
        self.held_out = min(settings.validation_windows or len(self.windows), len(self.windows))

    def targets(self, step: int) -> int:
        """Every token of every window is a target."""
        return self.tokens_per_step

    def batch(self, sequences: Sequence[int]) -> Batch:
        """inputs and targets, each (len(sequences), seq_len) int64; rows of -1 are padding."""
        windows = torch.zeros(len(sequences), self.seq_len + 1, dtype=torch.int64)
        real = [row for row, sequence in enumerate(sequences) if sequence >= 0]
        if real:  # the loop deals out consecutive numbers, padding last
            first = sequences[0]
            windows[: len(real)] = torch.from_numpy(self.stream.batch(first, len(real)))
        inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        targets[len(real) :] = IGNORE
        return {"inputs": inputs, "targets": targets}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        loss: Tensor = model(batch["inputs"], batch["targets"])
        return loss

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """Mean loss in nats a token, and bits a byte of text, over the first `validation_windows` windows.

        Bits a byte = loss / ln 2 · (tokens / bytes of the whole held-out text): exact when all windows are measured.
        """
        place = next(model.parameters()).device
        nats, targets = 0.0, 0
        for turn in range(math.ceil(self.held_out / (self.micro_batch * ranks.world_size))):
            first = (turn * ranks.world_size + ranks.rank) * self.micro_batch
            batch = self.validation_batch(first, min(self.micro_batch, self.held_out - first))
            nats += float(self.loss_sum(model, {name: value.to(place) for name, value in batch.items()}))
            targets += int((batch["targets"] != IGNORE).sum())
        nats, count = reduce_sum([nats, float(targets)])
        loss = nats / count
        per_byte = self.data.tokens("validation") / self.data.bytes("validation")
        return {"loss": loss, "bits_per_byte": loss / math.log(2) * per_byte}

    def validation_batch(self, first: int, count: int) -> Batch:
        """inputs and targets of `count` validation windows; an empty share still makes one row, of padding."""
        if count <= 0:
            empty = torch.zeros(1, self.seq_len, dtype=torch.int64)
            return {"inputs": empty, "targets": torch.full_like(empty, IGNORE)}
        tokens = torch.from_numpy(self.windows.batch(first, count))
        inputs, targets = tokens[:, :-1].clamp(min=0), tokens[:, 1:]
        return {"inputs": inputs.contiguous(), "targets": torch.where(targets < 0, IGNORE, targets)}


def write_final(recipe: Recipe, folder: Path, task: PretrainTask, result: TrainResult) -> list[Path]:
    """Write final/ from the last checkpoint. Nothing in it depends on time, speed or settings without effect: a resumed
    run makes the same."""
    final = folder / FINAL
    weights = {
        name: tensor.contiguous() for name, tensor in unique(checkpoints.consolidated_weights(result.checkpoint))
    }
    path = final / "weights.safetensors"
    with disk_errors(path):
        final.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + TEMPORARY)
        save_file(weights, temporary)
        temporary.chmod(0o644)  # safetensors makes it readable for its owner only
        sync_file(temporary)
        temporary.replace(path)
        sync_directory(final)
    write_json(final / "losses.json", {"losses": result.losses})
    write_json(
        final / "final.json",
        {
            "model": recipe.model.settings(),
            "vocab_size": task.data.vocab_size,
            "seed": recipe.seed,
            "step": result.steps,
            "tokens": result.steps * task.tokens_per_step,
            "loss": mean_of_last(result.losses),
            "validation": result.validations[result.steps],
        },
    )
    return [path, final / "losses.json", final / "final.json"]


def unique(weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The weights without second names of tied ones: the first name stays."""
    seen: set[tuple[int, torch.Size]] = set()
    found = []
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            found.append((name, tensor))
    return found


def mean_of_last(losses: Sequence[float], share: float = 0.02) -> float:
    """Mean loss of the last 2 % of the steps: that of a single step is noise."""
    last = losses[-max(1, round(share * len(losses))) :]
    return math.fsum(last) / len(last)

"""The pretrain stage: token tars in, trained weights out.

Output: `checkpoints/final/weights.safetensors` (fp32, our model's parameter names, a tied weight once),
`checkpoints/final/final.json` (what was trained and how well, which steps were skipped and which data passed over),
`checkpoints/final/losses.json` (mean loss of each step in nats; null for one that was not finite). Held-out numbers by
step depend on `validation_interval` and stand in `checkpoints/losses.jsonl`. Beside them stays the last checkpoint,
with the optimizer's state.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cluster.ranks import ALONE, Ranks, read_ranks
from pipeline.corpus.mix import Plan, mix_plan, mix_weights, tell_plan
from pipeline.files import TEMPORARY, disk_errors, sync_directory, write_json
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model, flops_per_token, parameter_count, rows_of_embedding
from pipeline.model.huggingface import load_base
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import LEFT_OUT
from pipeline.tokens.validation import ValidationWindows
from pipeline.tracking import Tracker
from pipeline.train import checkpoint_files
from pipeline.train.collective import manifest_of_rank_0
from pipeline.train.loop import train
from pipeline.train.phases import PlannedPhase, open_tokens, plan_phases
from pipeline.train.task import Batch, Phase, ReduceSum, TrainResult

FINAL = "final"
IGNORE = -100  # a target that does not count
AHEAD = 8  # global batches whose remote shards are asked for


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Pretrain, or continue to. Every rank calls it; rank 0 writes."""
    ranks = read_ranks() or ALONE
    with open_tokens(recipe, work.folder) as data:
        return _run(recipe, work, tracker, ranks, data)


def _run(recipe: Recipe, work: Work, tracker: Tracker, ranks: Ranks, data: TokenData) -> Manifest:
    plan = plan_phases(recipe, data)
    last = plan[-1]
    rows = rows_of_embedding(recipe.model, data.vocab_size)
    parameters = parameter_count(recipe.model, rows)
    if ranks.first:
        first = plan[0]
        if recipe.model.base:
            log.info(f"pretrain: goes on with {recipe.model.base}, whose shape the model has")
        log.info(
            f"pretrain: {parameters:,} parameters ({recipe.model.architecture}), {last.end:,} steps of "
            f"{first.global_batch * first.seq_len:,} tokens; {data.tokens('train'):,} training tokens, "
            f"{sum((each.end - each.first) * each.global_batch / each.stream.windows for each in plan):.2f} epochs"
        )
        if first.stream.padding:
            log.info(f"pretrain: documents are packed; {first.stream.padding:.3%} of the places in windows are padding")
    mix = planned_mix(recipe, plan, data)
    if ranks.first:
        tell_plan("pretrain", mix)
    padding = plan[0].stream.padding
    tracker.log_params({"parameters": parameters, "vocab_size": rows, "steps": last.end, "padding": round(padding, 6)})
    result = train(
        [
            Phase(each.first, partial(PretrainTask, recipe, data, plan, number), each.new)
            for number, each in enumerate(plan)
        ],
        recipe.pretrain,
        work.folder,
        recipe.seed,
        ranks,
        tracker,
        work.fence,
        recipe.model_dump(mode="json", exclude={"tracking"}),
    )
    if not ranks.first:
        return manifest_of_rank_0(work)
    work.fence.check()
    tokens = last.tokens_at(result.steps)
    outputs = write_final(recipe, work.folder, rows, tokens, result)
    checkpoint_files.prune(work.folder, keep=1, keep_every=recipe.pretrain.keep_every)
    validation = result.validations[result.steps]
    return work.finish(
        outputs,
        counts={
            "parameters": parameters,
            "steps": result.steps,
            "tokens": tokens,
            "vocab_size": rows,
            "padding": padding,
            "world_size": result.world_size,
            "mix": mix,
        },
        metrics={
            "loss": mean_of_last(result.losses),
            **{f"validation/{name}": value for name, value in validation.items()},
            **result.metrics,
        },
    )


def planned_mix(recipe: Recipe, plan: Sequence[PlannedPhase], data: TokenData) -> Plan:
    """What all phases together see of each source: documents, bytes, tokens, share of what is seen, epochs; beside it
    the source's weight before later phases."""
    seen = dict.fromkeys(plan[0].stream.counts, 0)
    for phase in plan:
        used = phase.stream.used((phase.end - phase.first) * phase.global_batch)
        for name, windows in used.items():
            seen[name] += (windows - phase.stream.begin[name]) * phase.seq_len
    sizes = {
        name: {
            "documents": data.documents("train", name),
            "bytes": data.bytes("train", name),
            "tokens": data.tokens("train", name),
        }
        for name in seen
    }
    found = mix_plan(
        sizes, {name: seen[name] / size["tokens"] for name, size in sizes.items()}, "tokens", sum(seen.values())
    )
    for name, weight in mix_weights(recipe, {name: size["tokens"] for name, size in sizes.items()}).items():
        found[name]["weight"] = weight
    return found


class PretrainTask:
    """Next-token prediction over windows of the token stream; a `Task` of the training loop."""

    name = "pretrain"

    def __init__(
        self, recipe: Recipe, data: TokenData, plan: Sequence[PlannedPhase] | None = None, number: int = 0
    ) -> None:
        """plan: of `plan_phases`; number: which of the phases."""
        settings = recipe.pretrain
        plan = plan or plan_phases(recipe, data)
        self.phase = phase = plan[number]
        self.data, self.stream, self.seq_len = data, phase.stream, phase.seq_len
        rows = rows_of_embedding(recipe.model, data.vocab_size)
        self.model = build_model(recipe.model, rows, recipe.seed)
        if recipe.model.base:
            load_base(self.model, recipe.model, Path(recipe.model.base))
        self.sequences = phase.global_batch
        self.tokens_per_step = phase.global_batch * phase.seq_len
        self.steps, self.all_steps = phase.end, plan[-1].end
        self.flops_per_step = flops_per_token(recipe.model, rows, phase.seq_len) * self.tokens_per_step
        self.fingerprint = phase.fingerprint
        self.earlier = {each.fingerprint: each.end for each in plan[:number]}
        self.about: Mapping[str, Any] = self.stream.about | {"global_batch": phase.global_batch, "phase": number}
        self.windows = ValidationWindows(data, phase.seq_len)
        self.micro_batch = settings.micro_batch
        self.held_out = min(settings.validation_windows or len(self.windows), len(self.windows))
        self.masks = settings.documents == "mask"
        self.skips_bad = settings.bad_shards == "skip"

    def tokens_at(self, step: int) -> int:
        """Tokens that were trained on in the first `step` steps."""
        return self.phase.tokens_at(step)

    def found_bad(self) -> Mapping[str, str]:
        """Token tars that are not what the index says, as far as this rank knows."""
        problems = dict(self.data.integrity.problems)
        return {file: why for file, why in problems.items() if file not in self.stream.left_out}

    def leave_out(self, names: Collection[str]) -> None:
        """No more windows of these files."""
        self.stream.left_out = set(names)

    def targets(self, step: int) -> int:
        """Every token of every window is a target, but for those that are left out."""
        return max(1, self.stream.targets((step - self.phase.first) * self.sequences, self.sequences))

    def batch(self, sequences: Sequence[int]) -> Batch:
        """inputs and targets, each (len(sequences), seq_len) int64; rows of -1 are padding."""
        windows = torch.full((len(sequences), self.seq_len + 1), LEFT_OUT, dtype=torch.int64)
        real = [row for row, sequence in enumerate(sequences) if sequence >= 0]
        if real:  # the loop deals out consecutive numbers, padding last
            first = sequences[0] - self.phase.first * self.sequences
            self.stream.want(first + len(real), AHEAD * self.sequences)
            windows[: len(real)] = torch.from_numpy(self.stream.batch(first, len(real), self.skips_bad))
        return self._inputs_and_targets(windows)

    def _inputs_and_targets(self, windows: Tensor) -> Batch:
        """Of windows (rows, seq_len + 1) in which negative numbers are no tokens."""
        targets = windows[:, 1:]
        batch = {
            "inputs": windows[:, :-1].clamp(min=0),
            "targets": torch.where(targets < 0, IGNORE, targets),
        }
        if self.masks:  # an end-of-text token is the first context of the document after it, as in validation
            batch["documents"] = (windows[:, :-1] == self.data.eos_id).cumsum(1)
        return batch

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        more = (batch["documents"],) if self.masks else ()
        loss: Tensor = model(batch["inputs"], batch["targets"], *more)
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
            return self._inputs_and_targets(torch.full((1, self.seq_len + 1), LEFT_OUT, dtype=torch.int64))
        return self._inputs_and_targets(torch.from_numpy(self.windows.batch(first, count)))


def write_final(recipe: Recipe, folder: Path, vocab_size: int, tokens: int, result: TrainResult) -> list[Path]:
    """Write final/ from the last checkpoint. Nothing in it depends on time, speed or settings without effect: a resumed
    run makes the same."""
    final = folder / FINAL
    path = final / "weights.safetensors"
    with disk_errors(path):
        final.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + TEMPORARY)
        checkpoint_files.write_weights(result.checkpoint, temporary)
        temporary.replace(path)
        sync_directory(final)
    write_json(final / "losses.json", {"losses": [loss if math.isfinite(loss) else None for loss in result.losses]})
    write_json(
        final / "final.json",
        {
            "model": recipe.model.settings(),
            "vocab_size": vocab_size,
            "seed": recipe.seed,
            "step": result.steps,
            "tokens": tokens,
            "loss": mean_of_last(result.losses),
            "validation": result.validations[result.steps],
            "loss_policy": result.happened,
        },
    )
    return [path, final / "losses.json", final / "final.json"]


def mean_of_last(losses: Sequence[float], share: float = 0.02) -> float:
    """Mean loss of the last 2 % of the steps (that of a single step is noise) that have a finite one."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    last = finite[-max(1, round(share * len(losses))) :]
    return math.fsum(last) / len(last) if last else math.nan

"""The pretrain stage on a few hundred tokens: what it writes and measures, and the same bytes when it was stopped."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError, Stopped
from pipeline.manifest import Manifest, Work
from pipeline.model.build import build_model, parameter_count
from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData
from pipeline.tokens.token_tars import Index, ShardWriter, write_index
from pipeline.tracking import Tracker
from pipeline.train import pretrain
from pipeline.train.pretrain import PretrainTask, mean_of_last
from pipeline.train.task import Batch

VOCABULARY, BYTES_PER_TOKEN = 40, 3
SIZES = {"train": 700, "validation": 45}


def write_tokens(folder: Path, train: int) -> None:
    """Token tars of a text in which each token follows from the one before."""
    parts: dict[str, dict[str, tuple[object, ...]]] = {}
    for part, count in (SIZES | {"train": train}).items():
        with ShardWriter(folder, f"{part}/numbers-00000", np.dtype("uint16"), 10_000, 10_000) as writer:
            writer.add(1 + np.arange(count) % 7, np.array([count]), BYTES_PER_TOKEN * count)
        parts[part] = {"numbers": tuple(writer.shards)}
    write_index(folder, Index(VOCABULARY, 0, parts))  # type: ignore[arg-type]


def recipe_in(workdir: Path, **values: object) -> Recipe:
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "tokens").exists():
        write_tokens(workdir / "tokens", SIZES["train"])
    return Recipe.model_validate(
        {
            "workdir": workdir,
            "model": {"dim": 32, "layers": 1, "heads": 2, "max_seq_len": 16, **values.pop("model", {})},  # type: ignore[dict-item]
            "pretrain": {
                "tokens": 1000,
                "seq_len": 16,
                "global_batch": 8,
                "micro_batch": 4,
                "precision": "fp32",
                "optimizer": {"learning_rate": 1e-2},
                "checkpoint_steps": 3,
                **values,
            },
        }
    )


def run(recipe: Recipe) -> Manifest:
    folder = recipe.workdir / "checkpoints"
    folder.mkdir(exist_ok=True)
    return pretrain.run(recipe, Work("pretrain", folder, "key", {}, {}), Tracker())


@pytest.mark.parametrize(
    "model", [{}, {"tied_embeddings": False}, {"architecture": "lstm"}], ids=["tied", "untied", "lstm"]
)
def test_writes_the_trained_weights(tmp_path: Path, model: dict[str, object]) -> None:
    recipe = recipe_in(tmp_path, model=model)
    made = run(recipe)
    final = tmp_path / "checkpoints" / "final"
    weights = load_file(final / "weights.safetensors")
    trained = build_model(recipe.model, VOCABULARY, 5)
    trained.load_state_dict(weights)
    assert sum(weight.numel() for weight in weights.values()) == parameter_count(recipe.model, VOCABULARY)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    described = json.loads((final / "final.json").read_text(encoding="utf-8"))
    assert described["model"] == recipe.model.settings()
    assert (described["vocab_size"], described["step"], described["tokens"]) == (VOCABULARY, 8, 1024)
    losses = json.loads((final / "losses.json").read_text(encoding="utf-8"))
    assert len(losses["losses"]) == 8
    assert set(losses) == {"losses"}  # how often it was validated must not show in what is fingerprinted
    assert losses["losses"][-1] < losses["losses"][0]
    assert {output.path.split("/")[0] for output in made.outputs} == {"final"}
    assert made.counts["parameters"] == parameter_count(recipe.model, VOCABULARY)
    assert made.metrics["tokens_per_second"] > 0
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1
    assert os.stat(final / "weights.safetensors").st_mode & 0o444 == 0o444


def test_held_out_loss_is_that_of_the_written_weights(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, validation_windows=0)
    made = run(recipe)
    model = build_model(recipe.model, VOCABULARY, 5)
    model.load_state_dict(load_file(tmp_path / "checkpoints" / "final" / "weights.safetensors"))
    task = PretrainTask(recipe, TokenData.open(tmp_path / "tokens"))
    batch = task.validation_batch(0, len(task.windows))
    assert int((batch["targets"] != -100).sum()) == SIZES["validation"]
    with torch.no_grad():
        nats = float(model(batch["inputs"], batch["targets"]))
    assert made.metrics["validation/loss"] == pytest.approx(nats / SIZES["validation"], rel=1e-5)
    bits = nats / math.log(2) / (BYTES_PER_TOKEN * SIZES["validation"])
    assert made.metrics["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-5)


class _Stopping(PretrainTask):
    """Gets SIGTERM in its fifth step."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        if torch.is_grad_enabled() and getattr(model, "global_steps", 0) == 4 and not hasattr(self, "stopped"):
            self.stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss_sum(model, batch)


def test_stopped_and_continued_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(recipe_in(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "PretrainTask", _Stopping)
        with pytest.raises(Stopped, match="after step 5 of 8"):
            run(recipe_in(tmp_path / "stopped"))
    assert run(recipe_in(tmp_path / "stopped")).outputs == whole.outputs


def test_padding_makes_no_targets(tmp_path: Path) -> None:
    task = PretrainTask(recipe_in(tmp_path), TokenData.open(tmp_path / "tokens"))
    batch = task.batch([3, 4, -1])
    assert batch["inputs"].shape == batch["targets"].shape == (3, 16)
    assert (batch["targets"][2] == -100).all()
    assert (batch["targets"][:2] >= 0).all()
    np.testing.assert_array_equal(batch["inputs"][:2, 1:], batch["targets"][:2, :-1])
    assert (task.batch([-1, -1])["targets"] == -100).all()


def test_validation_of_nothing_is_padding(tmp_path: Path) -> None:
    task = PretrainTask(recipe_in(tmp_path, validation_windows=1), TokenData.open(tmp_path / "tokens"))
    assert (task.validation_batch(1, -3)["targets"] == -100).all()
    with torch.no_grad():
        found = task.validate(task.model, ALONE, list)
    assert set(found) == {"loss", "bits_per_byte"}


def test_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", 10)
    with pytest.raises(DataError, match="less than one window"):
        run(recipe_in(tmp_path))


def test_a_shard_that_goes_missing_or_bad_is_named_and_the_checkpoint_stays(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(recipe_in(tmp_path, max_hours=1e-9))
    shard = next((tmp_path / "tokens" / "train").glob("*.tar"))
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard}: cannot be read \(No such file"):
        run(recipe_in(tmp_path))
    tokens = (1 + np.arange(SIZES["train"]) % 7).astype("<u2").tobytes()
    at = content.index(tokens) + 2 * 600
    shard.write_bytes(content[:at] + b"\xff\xff" + content[at + 2 :])
    with pytest.raises(
        DataError, match=rf"{shard}: damaged at byte {at:,}, in member 0: token 65,535, of a vocabulary of 40;"
    ):
        run(recipe_in(tmp_path, verify="never"))
    checksum = rf"{shard}: damaged: its checksum is not .*; member {shard.stem}-00000, .* has changed \(1 of 1 have\)"
    with pytest.raises(DataError, match=checksum):
        run(recipe_in(tmp_path, verify="always"))
    with pytest.raises(DataError, match=rf"{shard}: damaged"):  # by the reader or by the checksum: who is first
        run(recipe_in(tmp_path, verify="first_touch"))
    assert (tmp_path / "checkpoints" / "step-000000001" / "checkpoint.json").is_file()
    shard.write_bytes(content)
    assert run(recipe_in(tmp_path)).counts["steps"] == 8


def test_mean_of_the_last_losses() -> None:
    assert mean_of_last([9.0, 5.0]) == 5.0
    assert mean_of_last([9.0] * 98 + [1.0, 3.0]) == 2.0

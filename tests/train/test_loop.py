"""The training loop on one rank: the same losses however the batch is dealt out, stopped, resumed or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_task import GLOBAL_BATCH, AccidentalTask, TinyTask, run

from pipeline.errors import DataError, Stopped
from pipeline.train.checkpoint_files import weights
from pipeline.train.steps import split_batch
from pipeline.train.task import TrainResult


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Eight steps, never disturbed."""
    return run(tmp_path_factory.mktemp("unbroken"))


def test_learns_every_sequence_once(tmp_path: Path) -> None:
    task = TinyTask(steps=20)
    result = run(tmp_path, task, optimizer={"learning_rate": 3e-2})
    assert [number for number in task.seen if number < 10_000] == list(range(20 * GLOBAL_BATCH))
    assert len(result.losses) == result.steps == 20
    assert result.losses[-1] < result.losses[0] - 1
    assert result.validations[20]["loss"] < result.validations[2]["loss"]
    assert result.metrics["tokens_per_second"] > 0


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_micro_batch_does_not_change_the_losses(tmp_path: Path, unbroken: TrainResult, micro_batch: int) -> None:
    assert run(tmp_path, micro_batch=micro_batch).losses == pytest.approx(unbroken.losses, rel=1e-5)


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_a_stopped_run_continues_with_another_micro_batch(tmp_path: Path, unbroken: TrainResult, name: str) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, AccidentalTask(8, 4, "SIGTERM"), deepspeed=name)
    assert run(tmp_path, deepspeed=name, micro_batch=1).losses == pytest.approx(unbroken.losses, rel=1e-5)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_zero_stages_agree(tmp_path: Path, unbroken: TrainResult, name: str) -> None:
    result = run(tmp_path, deepspeed=name)
    assert result.losses == pytest.approx(unbroken.losses, rel=1e-5)
    expected = dict(weights(unbroken.checkpoint))
    found = dict(weights(result.checkpoint))
    assert found.keys() == expected.keys() == dict(TinyTask().model.named_parameters()).keys()
    for weight, tensor in found.items():
        torch.testing.assert_close(tensor, expected[weight], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_bf16_is_near_fp32(tmp_path: Path, unbroken: TrainResult, name: str) -> None:
    result = run(tmp_path, precision="bf16", deepspeed=name)
    assert result.losses == pytest.approx(unbroken.losses, rel=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in dict(weights(result.checkpoint)).values())


@pytest.mark.parametrize(("precision", "name"), [("fp32", "zero1"), ("bf16", "zero2")])
def test_muon_learns_and_resumes_bit_equal(tmp_path: Path, precision: str, name: str) -> None:
    chosen = {
        "optimizer": {"name": "muon", "learning_rate": 1e-2},
        "precision": precision,
        "deepspeed": name,
        "micro_batch": 8,
    }
    whole = run(tmp_path / "whole", **chosen)
    assert whole.losses[-1] < whole.losses[0]
    with pytest.raises(Stopped):
        run(tmp_path / "cut", AccidentalTask(8, 4, "SIGTERM"), **chosen)
    assert run(tmp_path / "cut", **chosen).losses == whole.losses


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_the_next_start_continues_bit_equal(
    tmp_path: Path, unbroken: TrainResult, number: str
) -> None:
    with pytest.raises(Stopped, match="after step 5 of 8"):
        run(tmp_path, AccidentalTask(8, 4, number))
    result = run(tmp_path)
    assert result.losses == unbroken.losses
    assert result.validations == unbroken.validations


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, unbroken: TrainResult) -> None:
    run(tmp_path, keep_checkpoints=3)
    damaged = tmp_path / "step-000000008" / "rank-00000-000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "step-000000006" / "index.json").unlink()
    result = run(tmp_path)
    assert result.losses == unbroken.losses
    for name, weight in weights(result.checkpoint):
        assert torch.equal(weight, dict(weights(unbroken.checkpoint))[name])


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = run(tmp_path)
    task = TinyTask()
    again = run(tmp_path, task)
    assert not [number for number in task.seen if number < 10_000]
    assert (again.losses, again.checkpoint) == (first.losses, first.checkpoint)


def test_keeps_so_many_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_steps=1, keep_checkpoints=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000007", "step-000000008"]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(DataError, match="other data or settings"):
        run(tmp_path, TinyTask(data="other"))


def test_history_survives_half_a_line(tmp_path: Path, unbroken: TrainResult) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, AccidentalTask(8, 4, "SIGTERM"))
    with open(tmp_path / "losses.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    assert run(tmp_path).losses == unbroken.losses
    records = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(8))


@pytest.mark.parametrize(
    ("sequences", "micro_batch", "world_size", "expected"),
    [
        (16, 8, 2, (8, 1)),
        (16, 8, 1, (8, 2)),
        (16, 8, 3, (6, 1)),
        (6, 4, 1, (3, 2)),
        (1, 8, 4, (1, 1)),
        (10, 3, 2, (3, 2)),
    ],
)
def test_split_batch(sequences: int, micro_batch: int, world_size: int, expected: tuple[int, int]) -> None:
    assert split_batch(sequences, micro_batch, world_size) == expected

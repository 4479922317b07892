"""Steps that go wrong: skipped by all ranks together, or undone with the data around them, and told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from test_ranks_together import launch, losses
from tiny_task import GLOBAL_BATCH, AccidentalTask, Batch, TinyTask, run
from torch import nn

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import RecipeError, Stopped
from pipeline.recipe import LossPolicy
from pipeline.train.audit import events
from pipeline.train.checkpoint_files import path_of
from pipeline.train.engine import process_group
from pipeline.train.loss_policy import GradientWatch, Spike, Watch, window_of
from pipeline.train.steps import update

QUICK = {"window": 8, "least_steps": 4, "rise": 0.3, "deviations": 6.0, "spike_steps": 2, "margin": 2}


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["kind"] == kind]


# --- decisions -----------------------------------------------------------------------------------------------------


def watch(**values: Any) -> Watch:
    return Watch(LossPolicy.model_validate(values))


def falling(steps: int, seed: int = 0) -> list[float]:
    """A healthy run as the demo's: from 9.7 down fast, then slowly towards 3.6, with the noise of small batches."""
    noise = np.random.default_rng(seed).normal(0.0, 1.0, steps)
    return [3.6 + 6.1 * math.exp(-t / 40) + 0.8 * math.exp(-t / 400) + 0.12 * noise[t] for t in range(steps)]


@pytest.mark.parametrize("seed", range(5))
def test_the_defaults_are_silent_on_a_healthy_run(seed: int) -> None:
    quiet = watch()
    for step, loss in enumerate(falling(3000, seed)):
        quiet.observe(step, loss, applied=True)
    assert quiet.told() == {"skipped_steps": [], "windows_passed_over": [], "rollbacks": 0}


def test_one_odd_batch_is_no_spike() -> None:
    quiet = watch()
    for step, loss in enumerate(falling(500)):
        quiet.observe(step, 3 * loss if step % 50 == 49 else loss, applied=True)
        assert not quiet.suspicious or step % 50 == 49


def test_a_spike_is_found_where_it_began() -> None:
    found = watch()
    with pytest.raises(Spike) as spike:
        for step, loss in enumerate(falling(500)):
            found.observe(step, loss + (2.0 if step >= 300 else 0.0), applied=True)
    assert (spike.value.first, spike.value.last) == (300, 302)
    assert spike.value.values["median"] < spike.value.values["limit"] < spike.value.values["loss"]


def test_no_spike_before_enough_steps_were_seen() -> None:
    early = watch()
    for step in range(50):
        early.observe(step, 3.0 if step < 20 else 9.0, applied=True)


def test_skips_in_a_row_are_a_spike() -> None:
    found = watch(skips_in_a_row=3)
    for step, applied in enumerate([True, False, False, True, False, False]):
        found.observe(step, 3.0, applied)
    with pytest.raises(Spike) as spike:
        found.observe(6, math.nan, applied=False)
    assert (spike.value.first, spike.value.last, found.state.skipped) == (4, 6, [1, 2, 4, 5, 6])


def test_the_checkpoint_to_go_back_to() -> None:
    policy, spike = watch(margin=10), Spike(100, 102, skipped=3)
    assert policy.good(spike, [30, 60, 90, 120]) == 90
    assert policy.good(spike, [30, 60, 91, 99, 100]) == 60
    assert policy.good(spike, [95, 99, 100]) == 99
    with pytest.raises(RecipeError, match=r"step 101: 3 steps in a row .* no checkpoint from before is there"):
        policy.good(spike, [100, 101])


def test_what_is_passed_over_is_not_asked_for_again() -> None:
    policy = watch(margin=2)
    before = policy.saved()
    assert policy.around(Spike(10, 12, skipped=3), 6, before) == [8, 9, 10, 11, 12]
    assert [policy.window(step) for step in (7, 8, 9)] == [7, 13, 14]
    assert policy.around(Spike(9, 10, skipped=2), 8, before) == [13, 14, 15]
    assert policy.window(8) == 16
    assert policy.told()["rollbacks"] == 2
    resumed = watch(margin=2)
    resumed.restore(json.loads(json.dumps(policy.saved())))
    assert resumed.state == policy.state


def test_window_of() -> None:
    assert [window_of(step, [6, 3]) for step in range(6)] == [0, 1, 2, 4, 5, 7]


def test_a_fault_in_one_matrix_is_seen_once_it_is_looked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model[0].weight.register_hook(lambda gradient: gradient * math.nan)
    gradients, seen = GradientWatch(model, torch.device("cpu")), []
    for _ in range(2):
        gradients.reset()
        (model(torch.ones(2, 4)) ** 3).sum().backward()
        seen.append(gradients.finite())
        gradients.look_closer()
    assert seen == [True, False]


def test_fp16_without_a_scale_is_told() -> None:
    """DeepSpeed's own scaler, driven to its end."""
    scaler = DynamicLossScaler(
        init_scale=4, scale_window=1000, min_scale=1, delayed_shift=1, consecutive_hysteresis=False
    )
    engine = SimpleNamespace(step=lambda: scaler.update_scale(True))
    with process_group(ALONE, find_device(ALONE)):
        update(engine)
        update(engine)
        with pytest.raises(RecipeError, match=r"precision=fp16: .* smallest loss scale; set precision=bf16, or lower"):
            update(engine)


# --- trainings -----------------------------------------------------------------------------------------------------


class Without(TinyTask):
    """The data of another task, but for some windows."""

    def __init__(self, steps: int, missing: Sequence[int]) -> None:
        super().__init__(steps)
        self.missing = missing

    def targets(self, step: int) -> int:
        return super().targets(window_of(step, self.missing))

    def batch(self, sequences: Sequence[int]) -> Batch:
        if sequences[0] < 10_000:  # not those of the validation
            step, place = divmod(sequences[0], GLOBAL_BATCH)
            first = window_of(step, self.missing) * GLOBAL_BATCH + place
            sequences = range(first, first + len(sequences))
        return super().batch(sequences)


def test_a_spike_is_undone_and_its_data_passed_over(tmp_path: Path) -> None:
    task = TinyTask(20, spoiled=range(11, 15))
    result = run(tmp_path / "spoiled", task, loss_policy=QUICK)
    spikes, rollbacks = told(tmp_path / "spoiled", "spike"), told(tmp_path / "spoiled", "rollback")
    assert (spikes[0]["first"], spikes[0]["step"]) == (12, 13)
    assert (rollbacks[0]["step"], rollbacks[0]["windows_passed_over"]) == (9, [9, 12])
    missing = result.happened["windows_passed_over"]
    assert set(missing) >= {9, 10, 11, 12}
    assert result.happened["rollbacks"] == len(rollbacks) == len(spikes)
    clean = run(tmp_path / "clean", Without(20, missing), loss_policy=QUICK)
    assert result.losses == clean.losses
    assert sorted(result.validations) == sorted(clean.validations)


def test_a_run_stopped_within_a_spike_and_after_its_rollback_comes_to_the_same_end(tmp_path: Path) -> None:
    spoiled = range(11, 15)
    whole = run(tmp_path / "whole", TinyTask(20, spoiled=spoiled), loss_policy=QUICK)
    for step in (11, 9, 15):  # in the spike, before its second look at the step, and later
        task = AccidentalTask(20, step, "SIGTERM", spoiled)
        with pytest.raises(Stopped):
            run(tmp_path / "cut", task, loss_policy=QUICK)
    result = run(tmp_path / "cut", TinyTask(20, spoiled=spoiled), loss_policy=QUICK)
    assert result.losses == whole.losses
    assert result.happened == whole.happened


def test_a_save_that_had_no_room_does_not_forbid_the_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after step 9, until training has gone back to there."""

    def usage(path: Path) -> SimpleNamespace:
        full = path_of(tmp_path, 9).exists() and not told(tmp_path, "rollback")
        return SimpleNamespace(free=0 if full else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    run(tmp_path, TinyTask(20, spoiled=[13, 14]), loss_policy=QUICK)
    assert [event["step"] for event in told(tmp_path, "save_failed")] == [12]
    assert [event["step"] for event in told(tmp_path, "rollback")] == [9]


def test_too_many_spikes_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"after 1 rollbacks \(loss_policy.most_rollbacks\); lower optimizer"):
        run(tmp_path, TinyTask(20, spoiled=range(11, 40)), loss_policy={**QUICK, "most_rollbacks": 1})
    assert len(told(tmp_path, "rollback")) == 1
    assert len(told(tmp_path, "spike")) == 2


def test_a_spike_before_the_first_checkpoint_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no checkpoint from before is there"):
        run(tmp_path, TinyTask(20, spoiled=range(11, 14)), loss_policy=QUICK, checkpoint_steps=0)


def test_a_checkpoint_is_not_written_in_what_may_be_a_spike(tmp_path: Path) -> None:
    """One odd window at the step after which a checkpoint is due: it is written one step later."""
    run(tmp_path, TinyTask(20, spoiled=[11]), loss_policy=QUICK, keep_checkpoints=9)
    steps = [event["step"] for event in told(tmp_path, "saved")]
    assert 12 not in steps
    assert 13 in steps
    assert not told(tmp_path, "spike")


@pytest.mark.parametrize("what", ["nan", "nan_gradient"])
def test_many_skips_in_a_row_roll_back(tmp_path: Path, what: str) -> None:
    class Always(AccidentalTask):
        def loss_sum(self, model: Any, batch: Batch) -> Any:
            self.happened = not 6 <= int(getattr(model, "global_steps", -1)) <= 7 or bool(told(tmp_path, "rollback"))
            self.step = int(getattr(model, "global_steps", -1))
            return super().loss_sum(model, batch)

    result = run(tmp_path, Always(12, 0, what), loss_policy={**QUICK, "skips_in_a_row": 2})
    assert told(tmp_path, "rollback")[0]["windows_passed_over"] == [4, 7]
    assert result.happened == {"skipped_steps": [], "windows_passed_over": [4, 5, 6, 7], "rollbacks": 1}
    assert result.losses == run(tmp_path / "clean", Without(12, [4, 5, 6, 7])).losses


def test_a_policy_that_is_off_stops_at_the_first_bad_loss(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"step 5: the loss is nan, and loss_policy.enabled=no; lower"):
        run(tmp_path, AccidentalTask(8, 4, "nan"), loss_policy={"enabled": False})


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, of which rank 1 has a NaN in step 5 of 8: every stage and precision, in the loss and in the gradient
    alone; and a spike."""
    folder = tmp_path_factory.mktemp("skipped")
    trainings = [
        {
            "folder": str(folder / f"{stage}-{precision}-{what}"),
            "settings": {"deepspeed": stage, "precision": precision, "micro_batch": 2},
            "accident": [1, 4, what],
        }
        for stage in ("zero0", "zero1", "zero2", "zero3")
        for precision, what in (("fp32", "nan_gradient"), ("bf16", "nan"), ("bf16", "nan_gradient"))
    ]
    muon = {"optimizer": {"name": "muon", "learning_rate": 1e-2}}
    trainings += [
        {"folder": str(folder / "muon"), "settings": muon, "accident": [1, 4, "nan_gradient"]},
        {"folder": str(folder / "spike"), "settings": {"loss_policy": QUICK}, "steps": 20, "spoiled": [11, 12]},
    ]
    ended = launch(2, *trainings)
    assert ended.returncode == 0, ended.stderr
    return folder


STAGES = ("zero0", "zero1", "zero2", "zero3")


def test_every_rank_skips_the_step_and_the_guilty_one_is_named(skipped: Path) -> None:
    for folder in (path for path in skipped.iterdir() if path.name != "spike"):
        (event,) = told(folder, "skipped")
        assert (event["step"], event["window"]) == (5, 4), folder
        assert [each["rank"] for each in event["ranks"]] == [1], folder
        assert (event["loss"] == "nan") == folder.name.endswith("-nan"), folder


@pytest.mark.parametrize("what", ["fp32-nan_gradient", "bf16-nan", "bf16-nan_gradient"])
def test_all_stages_skip_alike(skipped: Path, what: str) -> None:
    expected = losses(skipped / f"zero1-{what}")
    assert all(math.isfinite(loss) for loss in expected[:4] + expected[5:])
    for stage in STAGES:
        found = losses(skipped / f"{stage}-{what}")
        rel = 1e-5 if what.startswith("fp32") else 1e-2
        assert found[:4] + found[5:] == pytest.approx(expected[:4] + expected[5:], rel=rel), stage


def test_a_skipped_step_changes_nothing(skipped: Path, tmp_path: Path) -> None:
    """One rank, whose step 5 is skipped too, learns the same; and so does one that never saw that gradient."""
    alone = run(tmp_path, AccidentalTask(8, 4, "nan_gradient")).losses
    assert losses(skipped / "zero1-fp32-nan_gradient") == pytest.approx(alone, rel=1e-5)


def test_muon_keeps_its_momentum(skipped: Path) -> None:
    found = losses(skipped / "muon")
    assert all(math.isfinite(loss) for loss in found)
    assert found[-1] < found[0]


def test_two_ranks_go_back_together(skipped: Path, tmp_path: Path) -> None:
    alone = run(tmp_path, TinyTask(20, spoiled=[11, 12]), loss_policy=QUICK)
    assert alone.happened["rollbacks"] == len(told(skipped / "spike", "rollback")) == 1
    assert losses(skipped / "spike") == pytest.approx(alone.losses, rel=1e-4)

"""What the recipe and DeepSpeed's JSON may say, and how parameters are grouped."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import MODEL, VOCABULARY, settings

from pipeline.cluster.device import Device
from pipeline.cluster.launch import free_port
from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault, RecipeError
from pipeline.model.build import build_model
from pipeline.recipe import OptimizerSettings
from pipeline.train import engine
from pipeline.train.compilation import CPU_FLOPS
from pipeline.train.deepspeed_files import read_config, zero_stage
from pipeline.train.engine import Plan, compiles, configuration, precision
from pipeline.train.parameters import parameter_groups

CPU = Device("cpu", 0, "a processor", 1, bf16=True)
GPU = Device("cuda", 0, "a GPU", 1, bf16=True)
FOLDER = Path(__file__).parents[2] / "ds_configs"


def plan(**values: Any) -> Plan:
    return replace(Plan(world_size=2, micro_batch=3, accumulation=1, dtype=torch.float32, compile=False), **values)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_configurations_are_pure_and_documented(path: Path) -> None:
    assert zero_stage(path.stem) == int(path.stem[4])
    assert f"`{path.stem}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "key", ["train_batch_size", "gradient_accumulation_steps", "optimizer", "scheduler", "gradient_clipping", "bf16"]
)
def test_keys_that_the_recipe_sets_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, key: 1}))
    with pytest.raises(RecipeError, match=f"mine.json: '{key}' is set by the recipe"):
        read_config(str(path))


@pytest.mark.parametrize("content", ["{", "[]", '{"zero_optimization": {"stage": 4}}', '{"zero_optimization": 1}'])
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"mine\.json"):
        read_config(str(path))


def test_an_unknown_configuration_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'zero2'"):
        read_config("zerro2")


def test_configuration_holds_what_the_recipe_says() -> None:
    found = configuration(settings(gradient_clip=0.5), plan(accumulation=4), "cpu")
    assert found["train_batch_size"] == 24
    assert found["gradient_clipping"] == 0.5
    assert "bf16" not in found


def test_low_precision_keeps_fp32_somewhere() -> None:
    low = plan(dtype=torch.bfloat16, accumulation=4)
    assert configuration(settings(deepspeed="zero0"), low, "cpu")["torch_autocast"] == {
        "enabled": True,
        "dtype": "bfloat16",
    }
    assert configuration(settings(deepspeed="zero2"), low, "cpu")["data_types"] == {"grad_accum_dtype": "fp32"}
    assert configuration(settings(deepspeed="zero1"), low, "cpu")["bf16"] == {"enabled": True}


def test_buckets_fit_the_device_where_the_file_leaves_them_open(tmp_path: Path) -> None:
    def zero(name: str, kind: str) -> dict[str, object]:
        found: dict[str, object] = configuration(settings(deepspeed=name), plan(), kind)["zero_optimization"]
        return found

    assert zero("zero2", "cpu")["reduce_bucket_size"] == zero("zero2", "cpu")["allgather_bucket_size"] == 10_000_000
    assert zero("zero3", "cuda")["stage3_prefetch_bucket_size"] == 50_000_000
    assert zero("zero0", "cuda") == {"stage": 0}
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 1, "reduce_bucket_size": 7}}')
    assert zero(str(tmp_path / "mine.json"), "cuda")["reduce_bucket_size"] == 7


def test_fp16_scales_its_loss_as_it_goes() -> None:
    """DeepSpeed's scale is dynamic where none is given; without ZeRO torch's scaler does it, under autocast."""
    half = plan(dtype=torch.float16)
    for name in ("zero1", "zero2", "zero3", "zero3_offload"):
        assert configuration(settings(deepspeed=name), half, "cpu")["fp16"] == {"enabled": True}
    assert configuration(settings(deepspeed="zero0"), half, "cpu")["torch_autocast"] == {
        "enabled": True,
        "dtype": "float16",
    }


def test_muon_is_not_clipped() -> None:
    assert configuration(settings(optimizer={"name": "muon"}), plan(), "cpu")["gradient_clipping"] == 0.0


def test_precision_follows_the_device_unless_told() -> None:
    assert precision(settings(precision="auto"), CPU) == torch.bfloat16
    assert precision(settings(precision="auto"), Device("cpu", 0, "old", 1, bf16=False)) == torch.float32
    assert precision(settings(precision="fp16"), GPU) == torch.float16
    with pytest.raises(RecipeError, match="fp16 needs a GPU"):
        precision(settings(precision="fp16"), CPU)


def test_compile_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MODEL, VOCABULARY, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not compiles(settings(compile="auto"), GPU, model, 1e20)
    assert not compiles(settings(compile="auto"), CPU, model, 1e20)
    with pytest.raises(RecipeError, match=r"needs a C\+\+ compiler"):
        compiles(settings(compile="yes"), CPU, model, 0)
    (tmp_path / "c++").touch(mode=0o755)
    assert compiles(settings(compile="yes"), CPU, model, 0)
    assert compiles(settings(compile="auto"), GPU, model, 0)
    assert not compiles(settings(compile="no"), GPU, model, 1e20)


def test_a_cpu_compiles_long_trainings_of_our_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MODEL, VOCABULARY, 1)
    (tmp_path / "c++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiles(settings(compile="auto"), CPU, model, 2 * CPU_FLOPS)
    assert not compiles(settings(compile="auto"), CPU, model, CPU_FLOPS)
    assert not compiles(settings(compile="auto"), CPU, torch.nn.Linear(2, 2), 2 * CPU_FLOPS)


@pytest.mark.parametrize("tied", [True, False])
def test_decay_is_for_matrices_only(tied: bool) -> None:
    model = build_model(MODEL.model_copy(update={"tied_embeddings": tied}), VOCABULARY, 1)
    decayed, plain = parameter_groups(model, OptimizerSettings())
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)] for weight in plain["params"]} == {
        name for name in names.values() if "norm" in name or name == "embedding.weight"
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_muon_takes_hidden_matrices_only() -> None:
    model = build_model(MODEL.model_copy(update={"tied_embeddings": False}), VOCABULARY, 1)
    hidden, output, plain = parameter_groups(model, OptimizerSettings(name="muon"))
    assert [tuple(weight.shape) for weight in hidden["params"]] == 2 * [(64, 32), (32, 32), (128, 32), (32, 64)]
    assert [tuple(weight.shape) for weight in output["params"]] == [(VOCABULARY, MODEL.dim)]
    assert len(plain["params"]) == 1 + 2 * MODEL.layers + 1
    assert hidden["lr"] == 0.02


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(engine, "MEETING", timedelta(seconds=8))
    with (
        pytest.raises(EnvironmentFault, match=rf"rank 0 of 2 could not meet the others at 127.0.0.1:{port}: .* 1/2 "),
        engine.process_group(Ranks(0, 2, 0, 2, "local", port=port), CPU),
    ):
        pass

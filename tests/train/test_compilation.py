"""torch.compile, block by block: how much is compiled, and where it is kept."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import MODEL, VOCABULARY, TinyTask, run

from pipeline.cluster.device import Device
from pipeline.model.build import build_model
from pipeline.model.transformer import document_blocks
from pipeline.train.compilation import AGAIN, VARIABLE, Compiler, open_cache, regions
from pipeline.train.task import TrainResult

CPU = Device("cpu", 0, "a processor", 1, bf16=False)


@pytest.fixture(autouse=True)
def state_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled in a test stays there; compiling starts no processes."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setenv(VARIABLE, os.environ.get(VARIABLE, ""))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs are taken down and run as they are: no C++ is compiled, which takes a minute."""
    found: list[torch.fx.GraphModule] = []

    def take(self: Compiler, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(graph)
        self.graphs += 1
        return graph.forward

    monkeypatch.setattr(Compiler, "_backend", take)
    return found


@pytest.mark.parametrize("layers", [1, 3])
def test_one_block_is_compiled_for_all(traced: list[torch.fx.GraphModule], tmp_path: Path, layers: int) -> None:
    model = build_model(MODEL.model_copy(update={"layers": layers}), VOCABULARY, 1)
    tokens = torch.arange(32).reshape(2, 16)
    expected = model(tokens, tokens)
    Compiler().compile(model, CPU, str(tmp_path))
    for _ in range(2):
        loss = model(tokens, tokens)
        loss.backward()
    assert torch.equal(loss, expected)
    assert len(traced) == 2, "a block, and the loss"


def test_documents_of_each_step_share_a_graph(traced: list[torch.fx.GraphModule], tmp_path: Path) -> None:
    model: Any = build_model(MODEL, VOCABULARY, 1)
    Compiler().compile(model, CPU, str(tmp_path))
    model.document_blocks = document_blocks
    with torch.no_grad():
        for seed in range(3):
            tokens = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(seed))
            found = model(tokens, documents=(tokens < 8).cumsum(1))
            plain = build_model(MODEL, VOCABULARY, 1)(tokens, documents=(tokens < 8).cumsum(1))
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert len(traced) == 1


@pytest.fixture(scope="module")
def not_compiled(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tmp_path_factory.mktemp("plain"), TinyTask(2), compile="no", checkpoint_steps=0)


@pytest.mark.parametrize(
    ("zero", "activations"),
    [("zero0", "none"), ("zero1", "selective"), ("zero3", "none"), ("zero3", "selective"), ("zero3", "full")],
)
def test_every_stage_compiles_whole_blocks(
    traced: list[torch.fx.GraphModule],
    tmp_path: Path,
    not_compiled: TrainResult,
    zero: str,
    activations: str,
) -> None:
    """In training and in validation; a graph that broke at a hook would show as more of them."""
    chosen: dict[str, Any] = {
        "compile": "yes",
        "compile_cache": str(tmp_path / "cache"),
        "checkpoint_steps": 0,
    }
    result = run(tmp_path / "run", TinyTask(2), deepspeed=zero, activation_checkpointing=activations, **chosen)
    assert result.losses == not_compiled.losses
    assert len(traced) == 3, "a block with and without gradients, and the loss"


def test_other_models_have_regions_too() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=32)
    assert [type(region).__name__ for region in regions(LlamaForCausalLM(small))] == ["LlamaDecoderLayer"] * 3
    assert regions(build_model(MODEL.model_copy(update={"architecture": "lstm"}), VOCABULARY, 1)) == []
    layer = torch.nn.Linear(2, 2)
    assert regions(layer) == [layer]


def test_compiling_again_and_again_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ours = Compiler()
    with caplog.at_level(logging.INFO, logger="pipeline"):
        for graphs in [2, 2, *range(3, 3 + AGAIN)]:
            ours.graphs = graphs
            ours.news("tiny")
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO"] * AGAIN + ["WARNING"]
    assert "TORCH_LOGS=recompiles" in caplog.text


def test_a_cache_is_of_one_kind_of_machine(tmp_path: Path) -> None:
    first = open_cache(str(tmp_path), CPU)
    assert open_cache(str(tmp_path), CPU) == first == Path(os.environ[VARIABLE])
    assert open_cache(str(tmp_path), Device("cpu", 0, "another", 1, bf16=False)).parent != first.parent


def test_a_damaged_cache_is_left_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch mends an index that is cut short by itself; a library that is cut short, it cannot load again and again."""
    damaged = open_cache(str(tmp_path), CPU)

    def load(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if os.environ[VARIABLE] == str(damaged):
            raise OSError("x.so: file too short\nand a traceback")
        return graph.forward

    importlib.import_module("torch._inductor.compile_fx")
    monkeypatch.setattr(sys.modules["torch._inductor.compile_fx"], "compile_fx", load)
    ours = Compiler()
    double = torch.compile(lambda x: x * 2, backend=ours._backend)
    assert torch.equal(double(torch.ones(3)), 2 * torch.ones(3))
    assert ours.graphs == 1
    assert open_cache(str(tmp_path), CPU) == damaged.with_name("1")
    assert f"x.so: file too short; tries again in {damaged.with_name('1')}; {damaged} can be deleted" in caplog.text


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    found = open_cache(str(tmp_path / "file"), CPU)
    assert found.is_dir()
    assert "set compile_cache" in caplog.text

"""Files of fragments: any range of a parameter is read from whatever pieces hold it; DeepSpeed's state goes round."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_task import TinyTask, run

from pipeline.errors import DataError
from pipeline.train import snapshot
from pipeline.train.checkpoint_files import index_of
from pipeline.train.fragments import Block, Fragment, Piece
from pipeline.train.snapshot import Snapshot
from pipeline.train.tensor_files import Ranges

WHOLE = {"a": torch.arange(20.0), "b": torch.arange(7, dtype=torch.bfloat16), "c": torch.tensor(3.0)}
CUTS = {"a": (0, 6, 7, 20), "b": (0, 7), "c": (0, 1)}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranges:
    """Three parameters, cut in uneven pieces, in files of at most 40 bytes."""
    monkeypatch.setattr(snapshot, "LARGEST_FILE", 40)
    fragments = [
        Fragment(name, "weight", start, WHOLE[name].view(-1)[start:end])
        for name, cuts in CUTS.items()
        for start, end in pairwise(cuts)
    ]
    taken = Snapshot()
    taken.take(fragments)
    for fragment in fragments:  # training goes on
        fragment.tensor.add_(100)
    files, lines = taken.write(tmp_path, "rank-00000")
    for fragment in fragments:
        fragment.tensor.sub_(100)
    assert len(files) == 3
    for name in files:
        assert load_file(tmp_path / name)  # stock safetensors reads them
    return Ranges(tmp_path, index_of({name: list(tensor.shape) for name, tensor in WHOLE.items()}, {}, lines))


@pytest.mark.parametrize(("start", "end"), [(0, 20), (0, 6), (5, 8), (6, 7), (19, 20), (3, 18)])
def test_any_range_is_read(written: Ranges, start: int, end: int) -> None:
    into = torch.full((end - start,), -1.0)
    assert written.read("a", "weight", start, into)
    assert into.tolist() == list(range(start, end))


def test_other_types_and_states(written: Ranges) -> None:
    into = torch.zeros(7)
    assert written.read("b", "weight", 0, into)
    assert into.tolist() == list(range(7))
    assert written.kinds(["b"]) == {"weight": torch.bfloat16}
    assert not written.read("a", "exp_avg", 0, torch.zeros(20))


def test_a_range_that_nobody_wrote_is_named(written: Ranges) -> None:
    with pytest.raises(DataError, match=r"weight of a is not whole: elements 20 to 22 are nowhere"):
        written.read("a", "weight", 18, torch.zeros(4))


def test_states_are_made_and_cleared_as_a_checkpoint_has_them() -> None:
    """Before the first step there are none; after a roll-back there may be too many."""
    weight = torch.zeros(4)
    states: dict[torch.Tensor, dict[str, object]] = {}
    block = Block(weight, [Piece("a", 0, 0, 4)], ["a"], weight, states)
    block.prepare({}, {})
    assert not states
    block.prepare({"weight": torch.float32, "exp_avg": torch.float32}, {"step": 7.0})
    assert [fragment.state for fragment in block.fragments()] == ["weight", "exp_avg"]
    assert block.scalars() == {"step": 7.0}
    next(fragment for fragment in block.places() if fragment.state == "exp_avg").tensor.fill_(1)
    block.prepare({"weight": torch.float32}, {})
    assert block.scalars() == {}
    assert not next(fragment for fragment in block.places() if fragment.state == "exp_avg").tensor.any()


def test_a_model_of_other_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    task = TinyTask()
    task.model.embedding = torch.nn.Embedding(65, 32)
    with pytest.raises(
        DataError, match=r"holds another model: embedding.weight is \[64, 32\] there and \[65, 32\] here"
    ):
        run(tmp_path, task)

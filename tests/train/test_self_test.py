"""What is noticed before the first step: wrong versions, ranks that differ, gradients that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranks_together import launch
from tiny_task import run, settings

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.errors import EnvironmentFault
from pipeline.train import engine
from pipeline.train.self_test import ALLOWED, check_gradients, check_version, code_hash, disagreement


@pytest.mark.parametrize(
    ("version", "issue"),
    [("0.13.5", "5242"), ("0.14.3", "5692"), ("0.17.6", "7718"), ("0.18.2+cu13", "7718"), ("0.19.3", "8224")],
)
def test_wrong_versions_are_refused(version: str, issue: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"deepspeed {version[:6]}.* issue {issue}.*install 0.19.8 or newer"):
        check_version(version)


@pytest.mark.parametrize("version", ["", "0.17.5", "0.19.8", "0.20.0.dev1"])
def test_other_versions_are_not(version: str) -> None:
    check_version(version)


def test_the_rank_that_differs_is_named_with_its_host() -> None:
    usual, other = {"data": "a" * 40, "code": "b"}, {"data": "a" * 40, "code": "c"}
    assert disagreement([("n1", usual), ("n1", usual), ("n2", usual)]) == ""
    words = disagreement([("n1", other), ("n1", usual), ("n2", usual)])
    assert words.startswith("rank 0 on n1: another code than the other ranks (c, not b)")
    assert disagreement([("n1", usual), ("n2", {**usual, "data": "x"})]).startswith("rank 1 on n2: another data")
    words = disagreement([("n1", {"precision": "bfloat16"}), ("n2", {"precision": "float32"})])
    assert words.startswith("rank 1 on n2: another precision than the other ranks (float32, not bfloat16)")
    assert words.endswith("or set precision=fp32")
    assert "and 4 more" in disagreement([("n", {"code": str(rank) if rank < 12 else "z"}) for rank in range(40)])


def test_the_hash_of_the_code_is_stable() -> None:
    assert code_hash() == code_hash.__wrapped__()
    assert len(code_hash()) == 64


def difference(name: str, dtype: torch.dtype, **values: Any) -> float:
    device = find_device(ALONE)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    with engine.process_group(ALONE, device):
        return check_gradients(settings(deepspeed=name, precision=precision, **values), device, dtype, ALONE)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_far_below_what_is_allowed(name: str, dtype: torch.dtype) -> None:
    assert difference(name, dtype) < ALLOWED[dtype] / 4


@pytest.mark.parametrize("fault", ["a lost micro-batch", "a gradient of half its size", "nan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch, fault: str, dtype: torch.dtype) -> None:
    """As if DeepSpeed did it: its `backward` is another one."""
    start = engine.start

    def wrong(*arguments: Any) -> Any:
        made, calls = start(*arguments), iter(range(100))
        right = made.backward

        def backward(loss: Any) -> Any:
            factor = {
                "a lost micro-batch": float(next(calls) % 2),
                "a gradient of half its size": 0.5,
                "nan": float("nan"),
            }[fault]
            return right(loss * factor)

        made.backward = backward
        return made

    monkeypatch.setattr(engine, "start", wrong)
    with pytest.raises(
        EnvironmentFault, match=r"self-test: zero2 of deepspeed .* does not learn what plain torch does"
    ):
        difference("zero2", dtype)


def test_the_self_test_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "with", self_test=True).losses == run(tmp_path / "without").losses


def test_two_ranks_pass_it_and_one_with_other_data_does_not(tmp_path: Path) -> None:
    good = {"folder": str(tmp_path / "good"), "settings": {"self_test": True, "deepspeed": "zero2"}, "steps": 2}
    ended = launch(2, good, {**good, "folder": str(tmp_path / "bad"), "accident": [1, 0, "other_data"]})
    assert ended.returncode == 2, ended.stderr
    assert "rank 1 on " in ended.stderr
    assert "another data or recipe than the other ranks" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "good" / "losses.jsonl").is_file()

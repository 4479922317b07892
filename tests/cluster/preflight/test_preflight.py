"""Preflight with real ranks, each playing a node: good ones pass, and what is planted on one of them is named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Pipeline, clean_environment

from pipeline.cluster.launch import launch_command
from pipeline.errors import Unfit

NODE = Path(__file__).with_name("planted_node.py")


def preflight(tmp_path: Path, ranks: int = 3, **planted: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a preflight with `ranks` nodes."""
    report = tmp_path / "report.json"
    plan = {"folder": str(tmp_path), "report": str(report), **planted}
    status = launch_command([sys.executable, str(NODE), json.dumps(plan)], ranks)
    return status, json.loads(report.read_text()) if report.exists() else {}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def of_kind(said: dict[str, Any], kind: str) -> list[str]:
    return [line for line in said["lines"] if line.startswith(kind)]


def test_good_nodes(tmp_path: Path) -> None:
    """No node is bad; every figure is there; nothing is left behind. A floor brings pairs."""
    status, said = preflight(tmp_path, settings={"min_bandwidth": 1e6})
    report = said["report"]
    assert [place["host"] for place in report["places"]] == ["node1", "node2", "node3"]
    assert set(report["clocks"]) == {"node1", "node2", "node3"}
    assert all(abs(ahead) < 2 for ahead in report["clocks"].values())
    assert (report["shared"], report["locks"]) == (True, True)
    assert report["all_reduce"][0][0] == 1_000_000
    assert all(speed > 0 for _, speed in report["all_reduce"])
    assert set(report["pairs"]) == {"node1 node2", "node1 node3", "node2 node3"}
    assert {"torch", "deepspeed", "python", "headwater"} <= set(report["places"][0]["versions"])
    assert max(len(line.replace(str(tmp_path), "")) for line in said["lines"]) <= 100
    assert list((tmp_path / "run").iterdir()) == []
    # A floor that no link reaches, set by the recipe: either all links are alike, or slow ones are named.
    assert status == Unfit.status
    assert of_kind(said, "fault") or said["bad"]


def test_a_wrong_clock_an_old_version_and_another_folder_are_named(tmp_path: Path) -> None:
    """Three faults on three nodes of five, in one run."""
    old = tmp_path / "packages" / "deepspeed-0.18.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.1\n")
    told = {"wrong_clock": "node2", "old": "node3", "elsewhere": "node4", "packages": str(old.parent)}
    status, said = preflight(tmp_path, 5, **told, settings={"min_bandwidth": 1e-6})  # links are not what is shown here
    assert status == Unfit.status
    assert said["bad"] == ["node2", "node3", "node4"]
    bad = "\n".join(of_kind(said, "bad node"))
    assert re.search(r"bad node: node2: its clock is (29|30|31)\.\d s ahead of", bad)
    assert "bad node: node3: deepspeed 0.18.1, most have 0.19" in bad
    assert re.search(r"bad node: node4: .*/run is not the folder that node1, node2, node3 see", bad)
    assert len(said["bad"]) == len(of_kind(said, "bad node"))


def test_a_node_that_does_not_come_is_named(tmp_path: Path) -> None:
    status, said = preflight(tmp_path, absent="node2", settings={"wait_seconds": 45})
    assert status == Unfit.status
    assert of_kind(said, "bad node") == [
        "bad node: node2: none of its ranks came within 45 s (missing: rank 1)",
    ]


def test_a_node_that_freezes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.launch.GRACE", 1.0)  # the frozen rank does not follow the others
    status, said = preflight(tmp_path, hangs="node3")
    assert status == Unfit.status
    assert said["bad"] == ["node3"]
    assert "rank 2 has not answered for" in of_kind(said, "bad node")[0]


def test_rank_0_that_does_not_come_is_told_by_the_others(pipeline: Pipeline, tmp_path: Path) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = clean_environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    done = pipeline("preflight", "demo", f"workdir={tmp_path}", "preflight.wait_seconds=1", environment=environment)
    assert done.returncode == Unfit.status
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "rank 0 did not answer at 127.0.0.1:1 within 1 s" in lines[0]


def test_the_command_starts_its_own_ranks(pipeline: Pipeline, tmp_path: Path) -> None:
    done = pipeline("preflight", "demo", f"workdir={tmp_path}", "pretrain.ranks=2", "--json", "--exclude-bad")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["world_size"], report["status"], report["bad_nodes"]) == (2, 0, [])


def test_no_room_in_the_run_directory_is_a_fault(pipeline: Pipeline, tmp_path: Path) -> None:
    words = ("demo", f"workdir={tmp_path}", "pretrain.ranks=1", "preflight.min_free_gb=1e9", "--exclude-bad")
    done = pipeline("preflight", *words)
    assert done.returncode == Unfit.status
    assert "GB free, less than 1e+09 (preflight.min_free_gb)" in done.stdout
    assert "exclude=" not in done.stdout  # no other node would help

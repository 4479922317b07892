"""SIGKILL at any moment, then the same command again: the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from small_corpora import prose, tree, write_jsonl

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

# Runs the stage in forked children, each killed before its n-th rename, for every n; then once more, to the end.
EVERY_RENAME = """
import signal, sys
from pathlib import Path
from dying import forked
from pipeline import stage_state, stages
from pipeline.config import load_recipe
from pipeline.corpus import shard  # once, not in each child
from pipeline.tracking import Tracker

def run(workdir):
    recipe = load_recipe(sys.argv[1], [f"workdir={workdir}"])
    found = stage_state.status(recipe, "shard")
    stage_state.prepare(recipe, found)
    if found.state != "done":
        stages.load_stage(found.stage)(recipe, found.work, Tracker())

for number in range(1, 1000):
    workdir = Path(sys.argv[2]) / str(number)
    status = forked(workdir, number, run)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    assert forked(workdir, -1, run) == 0
print(number)
"""


BESIDE = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # dying.py
HELD = str(Path(__file__).with_name("held_shard.py"))


def write_recipe(folder: Path, workers: int) -> Path:
    write_jsonl(folder / "in" / "a.jsonl", [prose(n % 30) for n in range(40)] + ["short"])
    write_jsonl(folder / "in" / "b.jsonl", [prose(n) for n in range(25, 50)])
    source = {"name": "web", "type": "jsonl", "path": str(folder / "in"), "max_bytes": 24_000}
    corpus = {"sources": [source], "split_bytes": 10_000, "shard_bytes": 6000, "validation": 0.1, "workers": workers}
    recipe = folder / f"recipe-{workers}.yaml"
    recipe.write_text(yaml.safe_dump({"corpus": corpus, "tracking": {"enabled": False}}))
    return recipe


def test_killed_before_every_rename(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EVERY_RENAME, str(write_recipe(tmp_path, 1)), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=BESIDE)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").iterdir(), key=lambda path: int(path.name))
    assert len(runs) == int(done.stdout)
    assert len(runs) > 15
    unbroken = tree(runs[-1] / "text")
    assert all(tree(run / "text") == unbroken for run in runs)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    folder = tmp_path_factory.mktemp("killed")
    source = {"name": "py", "type": "python_docs", "packages": ["numpy"], "max_bytes": 3_000_000}
    corpus = {"sources": [source], "split_bytes": 10_000, "validation": 0.1, "workers": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"corpus": corpus, "tracking": {"enabled": False}}))
    words = [sys.executable, "-m", "pipeline", "shard", str(folder / "recipe.yaml")]
    return lambda workdir: [*words, f"workdir={workdir}"]


def start_and_wait(
    command: list[str], parts: Path, end: str, more: int
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start it in a process group of its own; return, with its children, once there are `more` such files than now.

    It makes no more of them (held_shard.py), so that what comes then surely comes in the middle.
    """
    wanted = len(list(parts.glob(f"*{end}"))) + more
    process = subprocess.Popen(
        [command[0], HELD, *command[3:]],  # in place of -m pipeline
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"HELD": f"{end}:{wanted}"},
    )
    while len(list(parts.glob(f"*{end}"))) < wanted:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    return process, psutil.Process(process.pid).children(recursive=True)


def test_killed_with_its_workers_or_alone_or_worker_by_worker(
    tmp_path: Path, command: Callable[[Path], list[str]]
) -> None:
    subprocess.run(command(tmp_path / "unbroken"), check=True, capture_output=True)
    workdir = tmp_path / "broken"
    parts = workdir / "text" / "parts"

    process, _ = start_and_wait(command(workdir), parts, ".read.json", 3)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert parts.is_dir()

    process, workers = start_and_wait(command(workdir), parts, ".read.json", 3)
    process.kill()  # alone: its workers must not go on writing beside its successor
    assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert len(workers) >= 2
    assert alive == []

    process, workers = start_and_wait(command(workdir), parts, ".read.json", 3)
    next(one for one in workers if "spawn_main" in " ".join(one.cmdline())).kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "a worker process was killed" in errors
    assert "Traceback" not in errors

    process, _ = start_and_wait(command(workdir), parts, ".done.json", 2)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    subprocess.run(command(workdir), check=True, capture_output=True)
    assert tree(workdir / "text") == tree(tmp_path / "unbroken" / "text")
    one, other = (json.loads((run / "text" / "manifest.json").read_text()) for run in (workdir, tmp_path / "unbroken"))
    assert one["fingerprint"] == other["fingerprint"]


# --- a full disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_continues_once_there_is_room(
    tmp_path: Path, command: Callable[[Path], list[str]]
) -> None:
    disk = tmp_path / "small disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        done = subprocess.run(command(disk / "run"), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "the disk is full; free some space" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((disk / "run" / "text").rglob("manifest.json"))
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        subprocess.run(command(disk / "run"), check=True, capture_output=True)
        subprocess.run(command(tmp_path / "roomy"), check=True, capture_output=True)
        assert tree(disk / "run" / "text") == tree(tmp_path / "roomy" / "text")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path, command: Callable[[Path], list[str]]) -> None:
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        command(tmp_path / "run"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert done.returncode == 2
    assert "raise `ulimit -f`" in done.stderr
    assert "Traceback" not in done.stderr

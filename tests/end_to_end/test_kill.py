"""SIGKILL of the whole process group, in every stage of one run: it ends with the same bytes and the same loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from command import PROJECT, clean_environment

from pipeline import manifest as manifests

FOLDERS = (
    "text",
    "tokenizer",
    "tokens",
    "checkpoints",
    "model",
    "finetune/summarize",
    "finetune/package",
    "evaluation",
)
LINGER = 2.0  # seconds that a stage may work before it is killed, where nothing else shows how far it is


def start(recipe: Path, workdir: Path) -> subprocess.Popen[bytes]:
    with open(workdir.parent / "said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(recipe), f"workdir={workdir}"],
            cwd=PROJECT,
            env=clean_environment(),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def wait_for_half_done(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the stage has begun to write, or has been at work for a while (or is done: it was quicker than we)."""
    begun = None
    while process.poll() is None and not (folder / "manifest.json").exists():
        if (folder / "building.json").exists():
            begun = begun or time.monotonic()
            checkpoint = any((folder / part).exists() for part in ("latest", "checkpoints/latest"))
            saved = checkpoint or any(folder.glob("step-*")) or any(folder.glob("checkpoints/step-*"))
            trains = folder.name == "checkpoints" or folder.parent.name == "finetune"
            if saved or (not trains and time.monotonic() - begun > LINGER):
                return
        time.sleep(0.01)


def test_killed_in_every_stage_it_ends_with_the_same_bytes(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    for folder in FOLDERS:
        process = start(tiny_recipe, workdir)
        wait_for_half_done(process, workdir / folder)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = start(tiny_recipe, workdir)
    assert last.wait(timeout=1500) == 0, (tmp_path / "said.txt").read_text(encoding="utf-8")[-4000:]
    for folder in FOLDERS:
        straight, killed = manifests.load(tiny_run / folder), manifests.load(workdir / folder)
        assert killed.key == straight.key, folder
        assert killed.outputs == straight.outputs, folder
        assert killed.counts == straight.counts, folder
    straight, killed = (manifests.load(run / "checkpoints") for run in (tiny_run, workdir))
    assert {name: value for name, value in killed.metrics.items() if "loss" in name or "bits" in name} == {
        name: value for name, value in straight.metrics.items() if "loss" in name or "bits" in name
    }

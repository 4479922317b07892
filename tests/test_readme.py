"""README's commands are run as they stand, on the tiny run in place of the demo; its YAML is read."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, TINY, clean_environment

from pipeline.config import load_recipe

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- test: ([^\n]*?) -->\n)?```bash\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
SMALL = "tokenizer.vocab_size=400 model.dim=32 model.layers=1 model.heads=2 pretrain.tokens=4096 pretrain.seq_len=64"


def commands(mark: str) -> list[str]:
    return [line for found, block in BLOCKS if found == mark for line in block.splitlines() if line.strip()]


def call(line: str, folder: Path) -> str:
    """Run a line of the README in a shell, with this environment's programs in place of `.venv/bin`."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    done = subprocess.run(
        ["bash", "-c", line.replace(".venv/bin/", f"{programs}/")],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    return done.stdout


def on_tiny(line: str, run: Path) -> str:
    """The same command for the tiny recipe and its run."""
    return re.sub(r"\bdemo\b", f"{shlex.quote(str(TINY))} workdir={shlex.quote(str(run))}", line, count=1)


def test_every_block_is_run_here_or_says_where() -> None:
    assert {mark.split(",")[0] for mark, _ in BLOCKS} == {"", "skip", "generate", "own", "stages"}
    for mark, _ in BLOCKS:
        assert not mark.startswith("skip") or "," in mark


@pytest.mark.parametrize("line", commands(""))
def test_commands_that_only_show(line: str, tmp_path: Path) -> None:
    assert call(line, tmp_path)


@pytest.mark.parametrize("line", commands("generate"))
def test_commands_that_generate(line: str, tiny_run: Path, tmp_path: Path) -> None:
    call(on_tiny(line, tiny_run), tmp_path)


def test_stages_one_at_a_time(tiny_run: Path) -> None:
    lines = commands("stages")
    assert [line.split()[1] for line in lines] == [
        *("shard", "tokenizer", "tokenize", "pretrain", "export", "finetune", "evaluate", "report"),
        *("shard",) * 4,
        *("tokenize",) * 2,
    ]
    for line in lines[:3] + lines[7:]:  # each stage in full is tested elsewhere; here the words are right
        call(on_tiny(line, tiny_run), PROJECT)


def test_your_own_text(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(YAML[0], encoding="utf-8")
    (tmp_path / "notes").mkdir()
    for number, path in enumerate(sorted((PROJECT / "pipeline").rglob("*.py"))):
        shutil.copy(path, tmp_path / "notes" / f"{number}.txt")
    (line,) = commands("own")
    said = call(f"{line} {SMALL} model.kv_heads=1 pretrain.ranks=1 tracking.enabled=false", tmp_path)
    assert "bits per byte" in said
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(YAML[1], encoding="utf-8")
    assert [one.name for one in load_recipe(str(path)).corpus.decontaminate.sets] == ["mmlu", "arc"]  # type: ignore[union-attr]
    path.write_text(YAML[2], encoding="utf-8")
    assert set(load_recipe(str(path)).finetune) == {"answers", "topics", "entails", "german", "law"}


def test_every_path_that_is_named_exists() -> None:
    for name in ("tools/quickstart", "tools/test", "tools/check", "tools/slurm_cluster", "slurm/pretrain.sh"):
        assert name in README
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (PROJECT / link).exists(), link

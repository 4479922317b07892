"""The tokenize stage as a job array: whoever does what and when, the bytes are those of the plain command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from command import clean_environment, run_pipeline

from pipeline.cluster.job_array import Share
from pipeline.errors import DataError
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.tasks import run_task
from pipeline.tokens import tokenize
from pipeline.tokens.encode import Encoder

Fresh = Callable[..., Recipe]


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def quiet(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"enabled": False})})


def do(recipe: Recipe, count: int, order: Sequence[int]) -> None:
    for number in order:
        run_task(recipe, "tokenize", Share(number, count))


@pytest.fixture(scope="module")
def plain(made: Recipe) -> dict[str, bytes]:
    """The tokens folder that the stage makes in one go."""
    return tree(made.workdir / "tokens")


@pytest.mark.parametrize(("count", "order"), [(1, [0]), (2, [1, 0]), (3, [2, 2, 0])])
def test_the_bytes_do_not_depend_on_the_tasks(
    fresh: Fresh, plain: dict[str, bytes], count: int, order: list[int]
) -> None:
    """The third array lacks a task; the plain command does its share."""
    recipe = quiet(fresh())
    do(recipe, count, order)
    folder = recipe.workdir / "tokens"
    receipts = len(list((folder / tokenize.RECEIPTS).iterdir()))
    assert receipts >= 4 and not (folder / "index.json").exists()
    run_stage(recipe, "tokenize")
    assert tree(folder) == plain
    do(recipe, count, order)  # done: nothing happens
    assert tree(folder) == plain


def write_recipe(path: Path, recipe: Recipe) -> Path:
    value = recipe.model_dump(mode="json", include={"workdir", "tokenizer", "tokenize"})
    path.write_text(yaml.safe_dump(value | {"tracking": {"enabled": False}}))
    return path


KILLED = """
import os, signal, sys
from pipeline.cluster.job_array import Share
from pipeline.config import load_recipe
from pipeline.tasks import run_task
from pipeline.tokens import encode, tokenize

def forked(share, die_at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    renames, replace = [0], os.replace
    def counting(old, new):
        renames[0] += "/tokens/" in str(new)
        if renames[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)
    os.replace = counting
    run_task(load_recipe(sys.argv[1]), "tokenize", share)
    os._exit(0)

kills = 0
for share in (Share(1, 2), Share(0, 2)):
    while status := forked(share, 3):  # each start makes one file, or two
        assert status == -signal.SIGKILL, status
        kills += 1
print(kills)
"""


def test_killed_again_and_again(fresh: Fresh, plain: dict[str, bytes]) -> None:
    recipe = fresh()
    path = write_recipe(recipe.workdir / "mine.yaml", recipe)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4
    assert list((recipe.workdir / "tokens").rglob("*.tmp"))  # left by killed tasks: others may be at work
    run_stage(quiet(recipe), "tokenize")
    assert tree(recipe.workdir / "tokens") == plain


def test_tasks_at_the_same_time_even_the_same_one_twice(fresh: Fresh, plain: dict[str, bytes]) -> None:
    recipe = fresh()
    path = write_recipe(recipe.workdir / "mine.yaml", recipe)
    words = [sys.executable, "-m", "pipeline", "tokenize", str(path), "--task"]
    environment = clean_environment()
    running = [
        subprocess.Popen([*words, share], stderr=subprocess.PIPE, text=True, env=environment)
        for share in ("0/2", "1/2", "1/2")
    ]
    told = [process.communicate(timeout=900)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    assert "--task 1/2 has made" not in told[0]
    done = run_pipeline("tokenize", path)
    assert done.returncode == 0, done.stderr
    assert tree(recipe.workdir / "tokens") == plain


def test_a_fault_of_gigatoken_that_one_task_meets_counts_for_all(
    fresh: Fresh, plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task's receipts are gigatoken's; the second catches it. No receipt of gigatoken's counts any more."""
    recipe = quiet(fresh())
    folder = recipe.workdir / "tokens"
    do(recipe, 2, [0])
    stray = folder / "train" / "chinese-00000-007.tar"  # such as gigatoken's wrong ids might have needed
    stray.write_bytes(b"")
    monkeypatch.setattr(Encoder, "_agrees", lambda self, texts, ids, ends: False)
    do(recipe, 2, [1])
    assert (folder / tokenize.SLOW).exists()
    monkeypatch.undo()
    made = run_stage(recipe, "tokenize")
    assert made.counts["engine"] == "tokenizers"
    files = tree(folder)
    assert files.pop(tokenize.SLOW) == b""
    assert files == plain


def test_another_recipe(fresh: Fresh) -> None:
    recipe = quiet(fresh())
    do(recipe, 3, [0])
    other = recipe.model_copy(update={"tokenize": recipe.tokenize.model_copy(update={"member_tokens": 1000})})
    with pytest.raises(DataError, match=r"half-done work of another recipe \(member_tokens was 2000, is 1000\)"):
        do(other, 3, [0])


# --- pipeline tokenize --inspect -----------------------------------------------------------------------------------


def test_inspect_shows_counts_and_text(made: Recipe, documents: dict[str, list[str]]) -> None:
    tar = made.workdir / "tokens" / "train" / "chinese-00000-000.tar"
    done = run_pipeline("tokenize", "--inspect", tar)
    assert done.returncode == 0, done.stderr
    assert f"{tar}: {tar.stat().st_size:,} bytes" in done.stdout
    assert "tokens (uint16), " in done.stdout
    assert "checksum: that of index.json" in done.stdout
    assert documents["chinese"][0][:60] in done.stdout
    assert len(done.stdout) < 10_000


def test_inspect_escapes_what_would_steer_a_terminal(
    made: Recipe, text_stage: Callable[..., Manifest], recipe_in: Callable[..., Recipe], stage: Callable[..., Manifest],
    tmp_path: Path,
) -> None:  # fmt: skip
    text_stage(tmp_path, {"web": ["\x1b[2J\x07 title \u202e evil"]}, {}, 10_000)
    (tmp_path / "tokenizer").symlink_to(made.workdir / "tokenizer")
    stage(recipe_in(tmp_path), "tokenize")
    done = run_pipeline("tokenize", "--inspect", tmp_path / "tokens" / "train" / "web-00000-000.tar")
    assert r"\x1b[2J\x07 title \u202e evil<|endoftext|>" in done.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)


def test_inspect_names_what_is_wrong(made: Recipe, tmp_path: Path) -> None:
    from pipeline.tokens.inspection import inspect_tar

    whole = (made.workdir / "tokens" / "train" / "python-00000-000.tar").read_bytes()
    tar = tmp_path / "train" / "python-00000-000.tar"
    tar.parent.mkdir()
    tar.write_bytes(whole)
    alone = "\n".join(inspect_tar(tar))
    assert "no index.json lies in the folder above" in alone and "(no tokenizer that fits lies beside it) " in alone
    assert "Tokenization help for Python" in "\n".join(inspect_tar(tar, made.workdir / "tokenizer"))
    for content in (b"", b"x" * 2000, whole[: len(whole) // 2], whole.replace(b"<u2", b"<f2", 1)):
        tar.write_bytes(content)
        with pytest.raises(DataError, match=rf"{tar.name}: (not a token tar|holds no member)"):
            list(inspect_tar(tar))
    for name in ("index.json", "members.npy"):
        os.link(made.workdir / "tokens" / name, tmp_path / name)
    tar.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(DataError, match=r"its checksum differs from the one in .*index\.json"):
        list(inspect_tar(tar))
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read: No such file"):
        list(inspect_tar(tmp_path / "gone.tar"))
    assert run_pipeline("tokenize").stderr.startswith("error: Missing argument 'RECIPE'")

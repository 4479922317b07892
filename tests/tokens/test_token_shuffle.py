"""Documents shuffled once: all of them, another order for each seed, the same bytes whoever does what and when."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_tokenize import killed_tokenize

from pipeline.cluster.job_array import Share
from pipeline.errors import DataError
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.tasks import run_task
from pipeline.tokens import shuffle, tokenize
from pipeline.tokens.data import TokenData
from pipeline.tokens.shuffle import SpillWriter, make_tar, plan_tars, read_tar
from pipeline.tokens.token_tars import documents as documents_of

Fresh = Callable[..., Recipe]


def quiet(recipe: Recipe, **more: object) -> Recipe:
    tracking = recipe.tracking.model_copy(update={"enabled": False})
    return recipe.model_copy(update={"tracking": tracking, **more})


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def texts(folder: Path, source: str, part: str = "train") -> list[bytes]:
    """The documents of a source, as the bytes of their ids, in order."""
    data = TokenData.open(folder)
    return [
        row.astype(np.int64).tobytes()
        for shard in data.index.parts[part][source]
        for row in documents_of(folder, shard, data.index.dtype)
    ]


def test_each_document_once_in_another_order(made: Recipe, fresh: Fresh) -> None:
    recipe = quiet(fresh(shuffle=True))
    run_stage(recipe, "tokenize")
    plain, folder = made.workdir / "tokens", recipe.workdir / "tokens"
    for source in ("python", "chinese"):
        before, after = texts(plain, source), texts(folder, source)
        assert before != after and sorted(before) == sorted(after)
        assert texts(plain, source, "validation") == texts(folder, source, "validation")
        for part in ("train", "validation"):
            old, new = TokenData.open(plain), TokenData.open(folder)
            assert old.bytes(part, source) == new.bytes(part, source)
            assert old.documents(part, source) == new.documents(part, source)
    assert not (folder / tokenize.RECEIPTS).exists()


def test_a_seed_is_an_order(fresh: Fresh, tmp_path: Path) -> None:
    recipe = quiet(fresh(shuffle=True))
    found = []
    for number, seed in enumerate((7, 7, 8)):
        one = quiet(recipe, seed=seed, workdir=tmp_path / str(number))
        one.workdir.mkdir()
        for name in ("text", "tokenizer"):
            (one.workdir / name).symlink_to(recipe.workdir / name)
        run_stage(one, "tokenize")
        found.append(texts(one.workdir / "tokens", "python"))
    assert found[0] == found[1] != found[2]
    assert sorted(found[0]) == sorted(found[2])


@pytest.mark.parametrize(("count", "order"), [(1, [0]), (2, [1, 0]), (3, [2, 2, 0])])
def test_the_bytes_do_not_depend_on_the_tasks(
    fresh: Fresh, count: int, order: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first array encodes, the second shuffles; of the third both lack a task. Three spills are a group."""
    monkeypatch.setattr(shuffle, "GROUP", 3)
    recipe = quiet(fresh(shuffle=True))
    plain = quiet(recipe, workdir=tmp_path / "plain")
    plain.workdir.mkdir()
    for name in ("text", "tokenizer"):
        (plain.workdir / name).symlink_to(recipe.workdir / name)
    run_stage(plain, "tokenize")
    folder = recipe.workdir / "tokens"
    for number in order:
        run_task(recipe, "tokenize", Share(number, count))
    assert not list(folder.glob("train/*.tar"))
    for number in order:
        run_task(recipe, "tokenize", Share(number, count))
    assert len(list((folder / tokenize.RECEIPTS).glob("shuffled-*.json"))) >= (4 if count < 3 else 0)
    run_stage(recipe, "tokenize")
    assert tree(folder) == tree(plain.workdir / "tokens")


def test_killed_in_either_pass(fresh: Fresh, tmp_path: Path) -> None:
    recipe = fresh(shuffle=True)
    for number, name in ((3, "tasks/train-"), (2, "shuffled-"), (2, "tokens/train/")):  # in either pass
        assert killed_tokenize(recipe, number, name) == -signal.SIGKILL
    assert list((recipe.workdir / "tokens" / tokenize.RECEIPTS).glob("shuffled-*.json"))
    assert killed_tokenize(recipe, 0) == 0
    plain = quiet(recipe, workdir=tmp_path / "plain")
    plain.workdir.mkdir()
    for name in ("text", "tokenizer"):
        (plain.workdir / name).symlink_to(recipe.workdir / name)
    run_stage(plain, "tokenize")
    assert tree(recipe.workdir / "tokens") == tree(plain.workdir / "tokens")


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    tasks=st.integers(1, 5),
    shard=st.integers(1, 400),
    member=st.integers(1, 100),
)
@settings(deadline=None, max_examples=40)
def test_no_document_is_lost_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tasks: int, shard: int, member: int
) -> None:
    """Documents are told apart by their first id; bytes of text go with them."""
    folder = tmp_path_factory.mktemp("shuffle")
    dtype = np.dtype(np.uint16)
    spills = []
    for task in range(tasks):
        with SpillWriter(folder / "tasks", f"train-s-{task:05d}", dtype, member, (1, "s", task)) as writer:
            for number in range(task, len(lengths), tasks):
                ids = np.full(lengths[number], number)
                writer.add(ids, np.array([len(ids)]), np.array([3 * len(ids)]))
        assert writer.spill is not None
        spills.append(writer.spill)
    found: list[np.ndarray] = []
    text = 0
    for tar in plan_tars("s", spills, 1, shard, member):
        make_tar(tar, lambda amount: None, folder, folder / "tasks", dtype, member)
        for one in read_tar(tar, folder / "tasks") or ():
            text += one.text_bytes
            found += documents_of(folder, one, dtype)
    assert sorted((int(row[0]), len(row)) for row in found) == list(enumerate(lengths))
    assert all((row == row[0]).all() for row in found) and text == 3 * sum(lengths)


def test_a_cut_spill_is_named(tmp_path: Path) -> None:
    dtype = np.dtype(np.uint16)
    with SpillWriter(tmp_path / "tasks", "train-s-00000", dtype, 10, (1, "s", 0)) as writer:
        writer.add(np.arange(30), np.array([10, 30]), np.array([1, 2]))
    assert writer.spill is not None
    (tar,) = plan_tars("s", [writer.spill], 1, 100, 100)
    path = tmp_path / "tasks" / "train-s-00000.ids"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train-s-00000\.ids: was cut"):
        make_tar(tar, lambda amount: None, tmp_path, tmp_path / "tasks", dtype, 100)
    path.unlink()
    with pytest.raises(DataError, match=r"train-s-00000\.ids: cannot be read"):
        make_tar(tar, lambda amount: None, tmp_path, tmp_path / "tasks", dtype, 100)

"""Duplicates through the whole stage: what is found, which copy stays, and that it depends on nothing else."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import random
import re
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import status_of
from small_corpora import MakeRecipe, Plain, Shard, tree, write_jsonl

from pipeline.cluster.job_array import Share
from pipeline.corpus.drops import drop_lines
from pipeline.corpus.fates import NEAR
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.tasks import run_decision, run_task

BOILERPLATE = "All of this may be copied, changed and passed on, as long as this line is left in its place."
ALL_OF_THEM = {
    "near_duplicates": {"bands": 7, "rows": 4, "ngram": 3},
    "duplicate_lines": "standard",
    "duplicate_paragraphs": {"max_documents": 4},
}
MODULES = ("argparse", "collections", "decimal", "logging", "pickletools", "ssl", "subprocess", "tarfile", "threading")
MODULES += ("typing", "unittest.case", "urllib.request", "zipfile", "pathlib", "inspect", "ast", "codecs", "turtle")


def real_documents() -> list[str]:
    """Pieces of the standard library, of 60 lines each."""
    found = []
    for name in MODULES:
        lines = inspect.getsource(sys.modules.get(name) or __import__(name, fromlist=["x"])).split("\n")
        found += ["\n".join(lines[start : start + 60]) for start in range(0, len(lines) - 60, 60)]
    return found


def edited(text: str, share: float, draw: random.Random) -> str:
    """The text with so many of its words replaced by others."""
    return re.sub(r"\w+", lambda word: f"w{draw.randrange(10**6)}" if draw.random() < share else word[0], text)


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(tuple(words[start : start + 5]) for start in range(len(words) - 4))


def clusters(text_folder: Path) -> dict[str, str]:
    """Cluster of each document that is in one, by id."""
    found = {facts["id"]: facts.get("cluster", facts["id"]) for _, facts in staying(text_folder)}
    return found | {one["id"]: one["cluster"] for one in near_drops(text_folder)}


def near_drops(text_folder: Path) -> list[dict[str, Any]]:
    """What is said of each document that was dropped as a near-duplicate, by id."""
    files = (text_folder / "dropped").glob("*.gz")
    found = [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]
    return sorted((one for one in found if one["rule"] == NEAR), key=lambda one: one["id"])


def keys(text_folder: Path) -> dict[str, str]:
    """Key in its text tar of each document that stays, by id."""
    return {facts["id"]: key for key, facts in staying(text_folder)}


def staying(text_folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key in its text tar, and facts, of each document that stays."""
    for path in text_folder.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    yield member.name[:-5], json.load(tar.extractfile(member))  # type: ignore[arg-type]


def test_pairs_found_and_pairs_joined_against_true_similarity(tmp_path: Path, shard: Shard) -> None:
    """Published parameters on real text: of pairs at .9 and above 99 % are found, of those below .5 hardly any."""
    draw = random.Random(3)
    texts = []
    for text in real_documents():
        texts += [text, edited(text, draw.choice((0.004, 0.01, 0.02, 0.05, 0.1, 0.2)), draw)]
    draw.shuffle(texts)
    path = write_jsonl(tmp_path / "in.jsonl", texts)
    source = {"name": "web", "type": "jsonl", "path": str(path), "id_field": "id"}
    shard([source], near_duplicates="standard", rules={"min_characters": None}, repair=False)
    cluster = clusters(tmp_path / "run" / "text")
    sets = {f"doc{n}": shingles(text) for n, text in enumerate(texts)}
    names = [name for name in sets if name in cluster]
    alike = missed = apart = joined = middle = middle_joined = 0
    for number, one in enumerate(names):
        for other in names[:number]:
            both = len(sets[one] & sets[other])
            jaccard = both / max(len(sets[one]) + len(sets[other]) - both, 1)
            together = cluster[one] == cluster[other]
            if jaccard >= 0.9:
                alike, missed = alike + 1, missed + (not together)
            elif jaccard < 0.5:
                apart, joined = apart + 1, joined + together
                if jaccard > 0.2:
                    middle, middle_joined = middle + 1, middle_joined + together
    assert alike > 80
    assert missed <= 0.01 * alike
    assert apart > 100_000
    assert joined <= 0.001 * apart
    assert middle > 30  # of these, which are the hard ones, too
    assert middle_joined <= 0.05 * middle


def test_the_longest_stays_then_the_first(tmp_path: Path, shard: Shard) -> None:
    draw = random.Random(1)
    bases = [[f"w{draw.randrange(100, 1000)}" for _ in range(400)] for _ in range(3)]
    longest, first, alone = (" ".join(words) for words in bases)
    changed = " ".join([*bases[0][:200], "w000", *bases[0][201:]])
    as_long = " ".join([*bases[1][:200], "w000", *bases[1][201:]])
    sources = [
        {"name": name, "type": "jsonl", "path": str(write_jsonl(tmp_path / f"{name}.jsonl", texts))}
        for name, texts in (("one", [longest, changed, first]), ("two", [as_long, longest + " and more", alone]))
    ]
    made = shard(sources, near_duplicates={"min_similarity": None})
    assert made.counts["near_duplicates"] == {
        "clusters": 2,
        "documents": 5,
        "dropped": {"one": {"two": 2}, "two": {"one": 1}},
    }
    assert made.counts["dropped"][NEAR]["documents"] == 3
    found = clusters(tmp_path / "run" / "text")
    assert {name: cluster for name, cluster in found.items() if name != cluster} == {
        "one.jsonl@0": "two-00000-0000001",
        "one.jsonl@2026": "two-00000-0000001",
        "one.jsonl@4052": "one-00000-0000002",
        "two.jsonl@0": "one-00000-0000002",
        "two.jsonl@2026": "two-00000-0000001",
    }
    dropped = near_drops(tmp_path / "run" / "text")
    assert [(one["id"], one["cluster"], one["cluster_size"], one["threshold"]) for one in dropped] == [
        ("one.jsonl@0", "two-00000-0000001", 3, None),
        ("one.jsonl@2026", "two-00000-0000001", 3, None),
        ("two.jsonl@0", "one-00000-0000002", 2, None),
    ]
    assert all(one["value"] > 0.8 for one in dropped)  # five shingles of about 400 are others
    lines = drop_lines(tmp_path / "run" / "text", NEAR, seed=1)
    assert "  two-00000-0000001 stays for 3 documents" in lines


def test_a_drop_tells_the_similarity_to_what_stays_and_the_threshold(tmp_path: Path, shard: Shard) -> None:
    draw = random.Random(2)
    texts = []
    for text in real_documents()[:30]:
        texts += [text, edited(text, draw.choice((0.003, 0.01, 0.02)), draw)]
    path = write_jsonl(tmp_path / "in.jsonl", texts)
    source = {"name": "web", "type": "jsonl", "path": str(path), "id_field": "id"}
    shard([source], near_duplicates="standard", rules={"min_characters": None}, repair=False, split_bytes=20_000)
    names = {name: one for one, name in keys(tmp_path / "run" / "text").items()}
    dropped = near_drops(tmp_path / "run" / "text")
    assert len(dropped) > 10
    for one in dropped:
        mine, kept = (shingles(texts[int(name[3:])]) for name in (one["id"], names[one["cluster"]]))
        true = len(mine & kept) / len(mine | kept)
        assert one["threshold"] == 0.7
        assert one["value"] == pytest.approx(true, abs=0.3)  # 112 bits: a standard deviation of .09 at most


# --- the same bytes ------------------------------------------------------------------------------------------------


def corpus(folder: Path) -> dict[str, Any]:
    """Two sources with copies, near-duplicates, lines and paragraphs in common; one ends at `max_bytes`."""
    if not folder.exists():
        draw = random.Random(7)
        texts = real_documents()[:40]
        near = [edited(text, 0.01, draw) for text in texts[:20]]
        mixed = [*texts, *near, *texts[5:8]]
        draw.shuffle(mixed)
        some = [f"{text}\n{BOILERPLATE}\n" if draw.random() < 0.5 else f"{text}\n\n{BOILERPLATE}\n" for text in mixed]
        write_jsonl(folder / "a.jsonl", some[:30])
        write_jsonl(folder / "b.jsonl", [*some[30:], BOILERPLATE])
    return {
        "sources": [
            {"name": "one", "type": "jsonl", "path": str(folder / "a.jsonl"), "max_bytes": 40_000},
            {"name": "two", "type": "jsonl", "path": str(folder / "b.jsonl")},
        ],
        "split_bytes": 15_000,
        "validation": 0.1,
        "workers": 1,
        "rules": {"min_characters": None},
        **ALL_OF_THEM,
    }


def test_the_corpus_has_duplicates_of_every_kind(plain: Plain) -> None:
    counts = plain.made.counts
    assert counts["near_duplicates"]["clusters"] > 10
    assert counts["removed"]["documents"] > 10
    assert {"duplicate", NEAR, "duplicate_lines.min_left"} <= counts["dropped"].keys()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_tasks_nor_on_memory(
    tmp_path: Path, recipe_in: MakeRecipe, plain: Plain, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(tmp_path, memory_bytes=1 << 20)
    parts = tmp_path / "text" / "parts"
    for step in range(4):
        for number in range(count)[::-1]:
            run_task(recipe, "shard", Share(number, count))
        if step < 3:
            run_decision(recipe, "shard")
            assert (parts / "decided.json").is_file() == (step == 2)
    run_stage(recipe, "shard")
    assert tree(tmp_path / "text") == plain.files


def test_processes_and_what_tasks_left(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    recipe = recipe_in(tmp_path, workers=2)
    run_decision(recipe, "shard")
    run_task(recipe, "shard", Share(1, 3))
    run_stage(recipe, "shard")
    assert tree(tmp_path / "text") == plain.files


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_at_random_moments(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    """Tasks, decisions and the last command in forked children, each killed after so many calls of any function."""
    recipe = recipe_in(tmp_path)
    draw = random.Random(11)
    kills = 0
    for step in ("0/2", "1/2", "decide") * 3 + ("1/2", "plain"):
        while (status := forked(recipe, step, calls := draw.randrange(500, 6000) * (4 + kills) // 4)) != 0:
            assert status == -signal.SIGKILL, (step, calls)
            kills += 1
    assert kills >= 20
    assert tree(tmp_path / "text") == plain.files


def forked(recipe: Recipe, step: str, calls: int) -> int:
    child = os.fork()
    if child:
        return status_of(child)

    def count(*_: object) -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.setprofile(count)
        if step == "plain":
            run_stage(recipe, "shard")
        elif step == "decide":
            run_decision(recipe, "shard")
        else:
            run_task(recipe, "shard", Share(int(step[0]), 2))
        os._exit(0)
    finally:
        os._exit(1)

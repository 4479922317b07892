"""The shard stage: raw corpora to text tars, cleaned, without duplicates, with a validation set split off.

Three steps. Every split is read and judged by itself (read_part.py, in parallel); then the hashes of all are looked
at together (decision.py; near-duplicates, lines and paragraphs after further parallel steps, matching.py); then every
split writes its tars (write_part.py, in parallel). What is made depends on
the sources and the recipe alone, not on the number of processes, nor on the machines that they run on (`run_task`);
whatever was finished before a crash is kept.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.job_array import Share
from pipeline.cluster.ranks import cores
from pipeline.corpus.decision import Decision, decide_copies, decide_matches, match_tasks, read_decision
from pipeline.corpus.decontamination.hits import HITS, add_hits, report_hits
from pipeline.corpus.decontamination.table import make_table
from pipeline.corpus.kept import FOLDER as KEPT
from pipeline.corpus.matching import MatchTask, match_part, not_done
from pipeline.corpus.mix import plan_by_bytes, tell_plan
from pipeline.corpus.reading import plan, read_all, read_share
from pipeline.corpus.records import part_file
from pipeline.corpus.sources import Split
from pipeline.corpus.workers import Workers
from pipeline.corpus.write_part import Counts, write_part
from pipeline.errors import DataError
from pipeline.files import TEMPORARY, disk_errors, write_json
from pipeline.manifest import Manifest, Output, Work
from pipeline.progress import log, progress
from pipeline.recipe import Corpus, Recipe, Source
from pipeline.tracking import Tracker

PARTS = "parts"  # half-done work; gone when the stage ends
SUMMARY = "documents.json"  # what was read, kept and dropped, by source and rule; written when all tars are there
_TOTALS: dict[str, dict[str, int]] = {
    "read": {"documents": 0, "bytes": 0},
    "kept": {"documents": 0, "bytes": 0},
    "train": {"documents": 0, "bytes": 0, "tars": 0},
    "validation": {"documents": 0, "bytes": 0, "tars": 0},
    "dropped": {},
    "languages": {},
}


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make text/: train and validation tars, dropped/*.jsonl.gz, documents.json.

    Raises: DataError when a source is not there, broken, or empty, or when no document is left;
    EnvironmentFault when the disk is full.
    """
    summary = work.folder / SUMMARY
    if not summary.is_file():
        _make(recipe.corpus, work.folder, summary)
    counts = json.loads(summary.read_text(encoding="utf-8"))
    outputs = [Output(**output) for output in counts.pop("outputs")]
    if (parts := work.folder / PARTS).exists():
        shutil.rmtree(parts)
    read, kept = counts["read"], counts["kept"]
    log.info(
        f"shard: kept {kept['documents']:,} of {read['documents']:,} documents "
        f"({counts['train']['bytes']:,} bytes to train on, {counts['validation']['bytes']:,} held out)"
    )
    for name, one in counts["sources"].items():
        if one["read"]["documents"] and not one["kept"]["documents"]:
            rules = ", ".join(f"{rule} {sizes['documents']:,}" for rule, sizes in one["dropped"].items())
            count = one["read"]["documents"]
            log.warning(f"source {name}: of {count:,} document{'s' * (count > 1)} none is kept; dropped by {rules}")
    tell_plan("shard", plan_by_bytes(recipe, counts["sources"]))
    shares = {"kept_documents_share": kept["documents"] / read["documents"]}
    hits = [work.folder / HITS] if recipe.corpus.decontaminate else []
    return work.finish([*outputs, summary, *hits], counts, shares)


def run_decision(recipe: Recipe, work: Work) -> None:
    """The next step over all splits, and what tasks left of the one before it. No task is at work meanwhile.

    Raises: as `run`.
    """
    if (work.folder / SUMMARY).is_file():
        log.info("shard: all is written; `pipeline shard` finishes the stage")
        return
    parts = _parts(work.folder, alone=True)
    make_table(recipe.corpus, parts)
    splits = plan(recipe.corpus)
    with _workers(recipe.corpus, len(splits)) as workers:
        _decide_next(recipe.corpus, parts, splits, workers)
    decision = read_decision(parts)
    if decision is not None:
        log.info(f"shard: decided; {len(decision.rows):,} splits can be written (`pipeline shard --task I/N`)")
    elif due := match_tasks(recipe.corpus, parts):
        log.info(f"shard: {len(due[1]):,} tasks to {due[0]} (`pipeline shard --task I/N`), then --decide again")


def run_task(recipe: Recipe, work: Work, share: Share) -> None:
    """A share of the parallel step that is due: reading before the decision, writing after it. Raises: as `run`."""
    if (work.folder / SUMMARY).is_file():
        log.info(f"shard: task {share}: all is written; `pipeline shard` finishes the stage")
        return
    parts = _parts(work.folder, alone=False)
    make_table(recipe.corpus, parts)
    splits = plan(recipe.corpus)
    decision = read_decision(parts)
    if decision is None and (due := match_tasks(recipe.corpus, parts)):
        name, tasks = due[0], share.of(due[1])
        with _workers(recipe.corpus, len(tasks)) as workers:
            _match(name, tasks, workers)
        log.info(f"shard: task {share} has done its share of `{name}`; when all tasks have, `pipeline shard --decide`")
        return
    if decision is None:
        with _workers(recipe.corpus, len(share.of(splits))) as workers:
            count = read_share(recipe.corpus, parts, splits, share, workers)
        log.info(
            f"shard: task {share} has read {count:,} splits; when all tasks have read theirs, `pipeline shard --decide`"
        )
        return
    chosen = share.of(range(len(decision.rows)))
    left = [n for n in chosen if not part_file(parts, splits[decision.rows[n]["position"]][1], "done.json").is_file()]
    with _workers(recipe.corpus, len(left)) as workers:
        _write(recipe.corpus, work.folder, splits, decision, left, workers)
    log.info(
        f"shard: task {share} has written {len(left):,} splits of its {len(chosen):,}; "
        "when all tasks have, `pipeline shard` finishes the stage"
    )


def _make(corpus: Corpus, folder: Path, summary: Path) -> None:
    splits = plan(corpus)
    parts = _parts(folder, alone=True)
    make_table(corpus, parts)
    with _workers(corpus, len(splits)) as workers:
        decision = _decision(corpus, parts, splits, workers)
        by_source = _write(corpus, folder, splits, decision, range(len(decision.rows)), workers)
    totals = _add_up(list(by_source.values()))
    for counts in by_source.values():
        counts.pop("languages")  # of all sources together is enough
    _check_kept(corpus, totals)
    totals.pop("outputs")
    if corpus.decontaminate:
        totals["contaminated"], items = report_hits(parts, totals.get("contaminated", {}))
        write_json(folder / HITS, items)
        for counts in by_source.values():
            counts["contaminated"] = counts.get("contaminated", {}).get("documents", {})
    outputs = sorted((one for counts in by_source.values() for one in counts.pop("outputs")), key=lambda o: o["path"])
    near = {} if decision.near_duplicates is None else {"near_duplicates": decision.near_duplicates}
    write_json(summary, {**totals, **near, "sources": by_source, "outputs": outputs})


def _parts(folder: Path, alone: bool) -> Path:
    """The folder of half-done work; what killed processes left there is deleted where no other process is at work."""
    parts = folder / PARTS
    with disk_errors(parts):
        parts.mkdir(exist_ok=True)
    if alone:
        for left in [*folder.rglob("*" + TEMPORARY), *(folder.parent / KEPT).glob("*" + TEMPORARY)]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return parts


def _workers(corpus: Corpus, tasks: int) -> Workers:
    return Workers(min(corpus.workers or cores(), max(tasks, 1)))


def _decision(corpus: Corpus, parts: Path, splits: Sequence[tuple[Source, Split]], workers: Workers) -> Decision:
    """The decision, made now if need be."""
    while (decision := read_decision(parts)) is None:
        _decide_next(corpus, parts, splits, workers)
    return decision


def _decide_next(corpus: Corpus, parts: Path, splits: Sequence[tuple[Source, Split]], workers: Workers) -> None:
    """What is left of the parallel step that is due, if it is not writing; then the step over all splits after it."""
    if read_decision(parts) is not None:
        return
    due = match_tasks(corpus, parts)
    if due is None:
        decide_copies(corpus, parts, read_all(corpus, parts, splits, workers))
    else:
        _match(*due, workers)
        decide_matches(corpus, parts)


def _match(name: str, tasks: Sequence[MatchTask], workers: Workers) -> None:
    """Do those tasks that are not done."""
    left = not_done(tasks)
    with progress(f"shard: {name}", len(left), "tasks") as bar:
        for _ in workers.run(match_part, left, bar):
            pass


def _write(
    corpus: Corpus,
    folder: Path,
    splits: Sequence[tuple[Source, Split]],
    decision: Decision,
    chosen: Sequence[int],
    workers: Workers,
) -> dict[str, Counts]:
    """Write the tars of the chosen rows of the decision; counts (and outputs) by source."""
    planned = list(decision.tasks(corpus, folder, splits, chosen))
    by_source: dict[str, list[Counts]] = {source.name: [] for source in corpus.sources}
    with progress("shard: write", sum(task.bytes for _, task in planned), "B") as bar:
        done = workers.run(write_part, (task for _, task in planned), bar)
        for (source, _), counts in zip(planned, done, strict=True):
            by_source[source.name].append(counts)
    return {name: _add_up(counts) for name, counts in by_source.items()}


def _add_up(counts: Sequence[Counts]) -> Counts:
    """The sum of the numbers of several counts; their lists joined."""
    total: Counts = copy.deepcopy(_TOTALS) | {"outputs": []}
    for one in counts:
        total["outputs"] += one["outputs"]
        for group in ("read", "kept", "train", "validation", "dropped", "languages", "decoded", "private", "removed"):
            if group in one:
                _add(total.setdefault(group, {}), one[group])
        if "contaminated" in one:
            add_hits(total.setdefault("contaminated", {}), one["contaminated"])
    for group in {"dropped", "decoded", "private", "languages"} & total.keys():
        total[group] = dict(sorted(total[group].items()))
    return total


def _add(total: dict[str, Any], one: dict[str, Any]) -> None:
    """Add numbers to those of the same name, at every depth."""
    for key, value in one.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def _check_kept(corpus: Corpus, totals: Counts) -> None:
    """Raises: DataError that says which rules took all documents, and what to change."""
    if totals["train"]["documents"]:
        return
    if totals["validation"]["documents"] and corpus.validation == 1.0:
        return
    dropped = sorted(totals["dropped"].items(), key=lambda item: -item[1]["documents"])
    told = ", ".join(f"{rule} {sizes['documents']:,}" for rule, sizes in dropped)
    rule = dropped[0][0]
    section, _, key = rule.rpartition(".")  # of a rule set: `fineweb.max_newlines`
    threshold = getattr(getattr(corpus.rules, section, None) if section else corpus.rules, key, None)
    remedy = f"loosen corpus.rules.{rule} (now {threshold})" if threshold is not None else "look at text/dropped/"
    raise DataError(
        f"no document of {totals['read']['documents']:,} is left after cleaning; dropped by {told}; {remedy}"
    )

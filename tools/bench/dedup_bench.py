"""Near-duplicates, from texts to what is left, beside datatrove's MinHash with the same parameters; and peak memory.

Both get the same documents from memory (with `--whole` a third contender reads them from disk and writes tars: the
shard stage). A share of the documents (`--near`) comes again with some of its words changed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import Contender, Outcome, measure
from texts import Corpus, read_jsonl

NGRAM, BANDS, ROWS, SEED = 5, 14, 8, 1  # FineWeb's
EDITS = (0.002, 0.01, 0.03, 0.1)  # shares of the words that are changed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    Corpus.add_options(parser)
    parser.add_argument("--near", type=float, default=0.2, help="share of documents that come again, changed (0.2)")
    parser.add_argument("--whole", action="store_true", help="also the whole shard stage, from JSON lines to tars")
    parser.add_argument("--alone", action="store_true", help="without datatrove: for memory at sizes that it cannot do")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="corpus.memory_bytes (512)")


def run(options: argparse.Namespace) -> Outcome:
    """Measure all, compare the clusters."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        corpus = Corpus.gather(options, Path(folder))
        path = Path(folder) / "near.jsonl"
        added = _add_near_duplicates(corpus.path, path, options.near, random.Random(options.seed))
        settings = {"documents": str(path), "memory": options.memory << 20}
        contenders = []
        if not options.alone:
            contenders += [
                Contender("Headwater", "dedup_bench:ours", settings=settings),
                Contender("datatrove", "dedup_bench:datatrove", "datatrove", settings),
            ]
        if options.alone or options.whole:
            contenders.append(Contender("Headwater, the whole stage", "dedup_bench:whole", settings=settings))
        found = [one for one in map(measure, contenders) if one]
        clusters = {one.name: one.result.pop("clusters") for one in found if "clusters" in one.result}
        lines = [f"{added:,} documents come again with some of their words changed.", ""]
        for one in found:
            told = ", ".join(f"{key} {value:,}" for key, value in one.result.items())
            lines.append(f"- {one.name}: {told}")
        facts: dict[str, Any] = {"kinds": corpus.kinds, "changed": added}
        if len(clusters) == 2:
            mine, other, both = _agreement(clusters["Headwater"], clusters["datatrove"])
            lines += [
                "",
                f"Pairs in one cluster: Headwater {mine:,}, datatrove {other:,}, both {both:,}: "
                f"{both / max(mine + other - both, 1):.1%} of those that either finds.",
            ]
            facts["pairs"] = {"Headwater": mine, "datatrove": other, "both": both}
    return Outcome(found, "datatrove", lines, facts)


def _add_near_duplicates(source: Path, path: Path, share: float, draw: random.Random) -> int:
    """The documents of a file, with some of them again a while later, changed; how many. Memory: a thousand."""
    waiting: list[dict[str, Any]] = []
    added = 0
    with open(path, "w", encoding="utf-8") as out:
        for document in read_jsonl(source):
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            if draw.random() < share:
                edit = draw.choice(EDITS)
                waiting.append(
                    document | {"id": f"{document['id']}~{edit}", "text": _edited(document["text"], edit, draw)}
                )
            if len(waiting) > 1000 or (waiting and draw.random() < share / 2):
                out.write(json.dumps(waiting.pop(draw.randrange(len(waiting))), ensure_ascii=False) + "\n")
                added += 1
        for document in waiting:
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
    return added + len(waiting)


def _edited(text: str, share: float, draw: random.Random) -> str:
    return re.sub(r"\w+", lambda word: f"w{draw.randrange(10**6)}" if draw.random() < share else word[0], text)


def _agreement(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, int, int]:
    """Pairs in one cluster: by us, by them, by both. Each: the cluster of every document, in order; -1: none."""

    def pairs(keys: Sequence[Any]) -> int:
        return sum(count * (count - 1) // 2 for count in Counter(keys).values())

    shared = [(one, other) for one, other in zip(ours, theirs, strict=True) if one >= 0 and other >= 0]
    return pairs([one for one in ours if one >= 0]), pairs([one for one in theirs if one >= 0]), pairs(shared)


# --- contenders ----------------------------------------------------------------------------------------------------


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Signatures to a file, pairs of all bands, clusters, and the documents that stay, as the shard stage does it."""
    import numpy as np

    from pipeline.corpus.clusters import CLUSTERS, SizedPart, find_clusters
    from pipeline.corpus.fingerprints import SIGNATURES, Fingerprints, fingerprint_file
    from pipeline.corpus.keyed_rows import KeyedPart
    from pipeline.corpus.minhash import sketch_words
    from pipeline.corpus.near_duplicates import find_pairs
    from pipeline.recipe import Corpus
    from pipeline.settings.duplicates import NearDuplicates

    near = NearDuplicates(ngram=NGRAM, bands=BANDS, rows=ROWS, seed=SEED, min_similarity=None)
    corpus = Corpus(near_duplicates=near)
    width = 2 + sketch_words(near)

    def deduplicate(texts: Sequence[str]) -> Any:
        with tempfile.TemporaryDirectory(prefix="bench-ours-") as name:
            folder = Path(name)
            with Fingerprints(folder, "all", corpus) as fingerprints:
                for number, text in enumerate(texts):
                    fingerprints.add(text, number)
            part = KeyedPart(fingerprint_file(folder, "all", SIGNATURES), BANDS, width, 0, len(texts))
            gone = np.zeros(len(texts), np.bool_)
            for band in range(BANDS):
                find_pairs([part], gone, near, band, (0, 1), settings["memory"], folder / f"pairs{band}")
            sizes = np.array([len(text) for text in texts], np.uint64)
            pairs = [folder / f"pairs{band}" for band in range(BANDS)]
            find_clusters(pairs, [SizedPart(0, lambda: sizes)], settings["memory"], folder / "clusters")
            return np.fromfile(folder / "clusters", CLUSTERS)

    texts = [document["text"] for document in read_jsonl(settings["documents"])]
    deduplicate([*texts[:20], *texts[:20]])  # compiled functions are loaded

    def work() -> dict[str, Any]:
        found = deduplicate(texts)
        of_all = np.full(len(texts), -1, np.int64)
        of_all[found["document"].astype(np.int64)] = found["best"].astype(np.int64)
        kept = sum(1 for number, cluster in enumerate(of_all.tolist()) if cluster in (-1, number))
        return _result(texts, kept, of_all.tolist())

    return work


def datatrove(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """datatrove's four steps, one process, files in a folder: signatures, buckets, clusters, filter."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from loguru import logger
    from xxhash import xxh64_intdigest

    logger.remove()
    config = MinhashConfig(
        n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, seed=SEED, hash_config=HashConfig(precision=64)
    )

    def deduplicate(texts: Sequence[str]) -> tuple[int, list[int]]:
        documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
        with tempfile.TemporaryDirectory(prefix="bench-theirs-") as name:
            signatures, buckets, clusters = (f"{name}/{step}" for step in ("signatures", "buckets", "clusters"))
            first = MinhashDedupSignature(signatures, config)
            first._hash_func = lambda text: xxh64_intdigest(text.encode())  # xxhash 3.8 takes no str any more
            first.run(iter(documents))
            for band in range(BANDS):
                step = MinhashDedupBuckets(signatures, buckets, config=config)
                step.run(rank=band, world_size=BANDS)
            MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True).run()
            left = MinhashDedupFilter(clusters, load_cluster_ids=True).run(iter(documents))
            kept = sum(1 for _ in left)
        return kept, [int(document.metadata.get("minhash_cluster_id", -1)) for document in documents]

    texts = [document["text"] for document in read_jsonl(settings["documents"])]
    deduplicate([*texts[:20], *texts[:20]])

    def work() -> dict[str, Any]:
        return _result(texts, *deduplicate(texts))

    return work


def whole(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The shard stage with no other rule: JSON lines read, near-duplicates found and verified, tars written."""
    from pipeline.corpus.rules import PLAIN
    from pipeline.recipe import Recipe
    from pipeline.run import run_stage

    def stage(path: Path, folder: str) -> Any:
        source = {"name": "text", "type": "jsonl", "path": str(path)}
        corpus = {
            "sources": [source],
            "near_duplicates": {"ngram": NGRAM, "bands": BANDS, "rows": ROWS, "seed": SEED},
            "rules": dict.fromkeys(PLAIN),
            "memory_bytes": settings["memory"],
            "workers": 1,
        }
        recipe = Recipe.model_validate({"workdir": folder, "corpus": corpus, "tracking": {"enabled": False}})
        return run_stage(recipe, "shard").counts

    documents = Path(settings["documents"])
    with tempfile.TemporaryDirectory(prefix="bench-ours-") as name:
        few = Path(name) / "few.jsonl"
        with open(documents, encoding="utf-8") as lines:
            few.write_text("".join(line for line, _ in zip(lines, range(20))), encoding="utf-8")  # noqa: B905 - the first 20
        stage(few, f"{name}/run")

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="bench-ours-") as name:
            counts = stage(documents, name)
        near = counts["near_duplicates"]
        return {
            "bytes": counts["read"]["bytes"],
            "documents": counts["read"]["documents"],
            "kept": counts["kept"]["documents"],
            "in clusters": near["documents"],
            "of them kept": near["clusters"],
        }

    return work


def _result(texts: Sequence[str], kept: int, clusters: Sequence[int]) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts)
    several = Counter(cluster for cluster in clusters if cluster >= 0)
    return {
        "bytes": size,
        "documents": len(texts),
        "kept": kept,
        "in clusters": several.total(),
        "of them kept": len(several),
        "clusters": list(clusters),
    }

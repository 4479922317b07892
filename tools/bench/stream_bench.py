"""The training stream beside others' loaders: windows of 2,049 tokens as int64, in shuffled order, from one process.

`warm`: the files are in the page cache; `cold`: they were put out of it. Then how long a start takes, at the first
token and at 99 % of an epoch, and with an index of ten trillion tokens over sparse files.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from measure import Contender, Measured, Outcome, measure

SEQ_LEN, BATCH, VOCABULARY = 2048, 64, 32_000
SHARD, MEMBER = 256 << 20, 16 << 20  # tokens, as stage tokenize makes them


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--tokens", type=float, default=200e6, help="in the corpus (default 2e8)")
    parser.add_argument("--manifest", type=float, default=10e12, help="tokens of the sparse corpus (default 1e13)")
    parser.add_argument("--folder", type=Path, help="where the corpora are made; default: a temporary folder")


def run(options: argparse.Namespace) -> Outcome:
    """Make the tokens in each loader's own format, measure all."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as name:
        folder, tokens = Path(name), int(options.tokens)
        _tokens(folder / "ours", tokens)
        _sparse(folder / "sparse", int(options.manifest))
        base = {"folder": name, "tokens": tokens}
        ours = [
            Contender("Headwater, warm", "stream_bench:ours", settings=base),
            Contender("Headwater, cold", "stream_bench:ours", settings=base | {"cold": True}),
            Contender("Headwater, two weighted sources, collated", "stream_bench:collated", settings=base),
            Contender("mapped array, warm (the limit)", "stream_bench:mapped", "numpy", base),
        ]
        others = [
            Contender("webdataset, warm", "stream_bench:webdataset", "webdataset", base),
            Contender("litdata TokensLoader, warm", "stream_bench:litdata", "litdata", base),
            Contender("MosaicML streaming, warm", "stream_bench:mosaic", "mosaicml-streaming", base),
        ]
        starts = [
            Contender(f"start at {share:.0%} of {words}", "stream_bench:start", settings=base | at)
            for corpus, words in (("ours", f"{tokens:.0e}"), ("sparse", f"{options.manifest:.0e}"))
            for share in (0.0, 0.99)
            for at in [{"corpus": corpus, "share": share}]
        ]
        found = [one for one in map(_measured, [*ours, *others, *starts]) if one]
    return Outcome(found, "", _lines(found), {"seq_len": SEQ_LEN, "batch": BATCH, "tokens": tokens})


def _measured(contender: Contender) -> Measured | None:
    """None where a peer does not work here, which is said."""
    module = {"mosaicml-streaming": "streaming"}.get(contender.package)
    try:
        if module is None or importlib.util.find_spec(module):
            return measure(contender)
        print(f"{contender.name}: {contender.package} is not installed, left out (pip install -e '.[bench]')")
    except SystemExit as error:
        if contender.package in ("headwater", "numpy"):
            raise
        print(f"{contender.name}: does not run here: {str(error).strip().splitlines()[-1]}")
    return None


def _lines(found: list[Measured]) -> list[str]:
    lines = ["| | M tokens/s | of CPU time | peak MiB |", "|---|---:|---:|---:|"]
    for one in found:
        if "first_batch" not in one.result:
            speed, of_cpu = (one.result["tokens"] / seconds / 1e6 for seconds in (one.seconds, one.processor))
            lines.append(f"| {one.name} | {speed:,.0f} | {of_cpu:,.0f} | {one.peak / 2**20:,.0f} |")
    lines += ["", "| | s to the first batch | peak MiB |", "|---|---:|---:|"]
    for one in found:
        if "first_batch" in one.result:
            lines.append(f"| {one.name} | {one.result['first_batch']:.2f} | {one.peak / 2**20:,.0f} |")
    return lines


# --- contenders ----------------------------------------------------------------------------------------------------


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """One epoch of the stream, all sources."""
    from pipeline.tokens.data import TokenData
    from pipeline.tokens.stream import Stream

    folder = Path(settings["folder"]) / "ours"
    stream = Stream(TokenData.open(folder), SEQ_LEN, 1, {})
    _cache(folder, keep=not settings.get("cold"))

    def work() -> dict[str, Any]:
        for first in range(0, stream.windows - BATCH, BATCH):
            stream.batch(first, BATCH)
        return _result(stream.windows // BATCH * BATCH)

    return work


def collated(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """torch batches of two sources with weights, as another trainer gets them."""
    from pipeline.tokens.views import TokenLoader

    folder = Path(settings["folder"]) / "ours"
    loader = iter(TokenLoader(folder, SEQ_LEN, BATCH, weights={"a": 1.7, "b": 0.6}, verify="never"))
    _cache(folder, keep=True)
    batches = settings["tokens"] // SEQ_LEN // BATCH
    next(loader)

    def work() -> dict[str, Any]:
        for _ in range(batches):
            batch = next(loader)
            batch[:, :-1], batch[:, 1:]
        return _result(batches * BATCH)

    return work


def mapped(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A bare numpy map in random order, widened to int64: nothing can be much faster."""
    path = Path(settings["folder"]) / "plain.bin"
    _plain(settings["tokens"]).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r").view(np.ndarray)
    order = np.random.default_rng(1).permutation((len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    int(tokens.sum())

    def work() -> dict[str, Any]:
        out = np.empty((BATCH, SEQ_LEN + 1), dtype=np.int64)
        for number, start in enumerate(order.tolist()):
            out[number % BATCH] = tokens[start : start + SEQ_LEN + 1]
        return _result(len(order))

    return work


def webdataset(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Stock webdataset, one window a member, shuffled in a buffer of 1,000."""
    import webdataset as wds

    path = Path(settings["folder"]) / "windows.tar"
    windows = min(20_000, (settings["tokens"] - 1) // SEQ_LEN)
    plain = _plain(windows * SEQ_LEN + 1)
    with tarfile.open(path, "w") as tar:
        for number in range(windows):
            held = BytesIO()
            np.save(held, plain[number * SEQ_LEN : (number + 1) * SEQ_LEN + 1])
            info = tarfile.TarInfo(f"{number:08d}.npy")
            info.size = held.tell()
            tar.addfile(info, BytesIO(held.getvalue()))
    path.read_bytes()
    data = wds.WebDataset(str(path), shardshuffle=False).shuffle(1000).decode()

    return partial(_one_by_one, data, "npy")


def litdata(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """litdata's TokensLoader over its own chunks, shuffled."""
    import torch
    from litdata import StreamingDataset, TokensLoader, optimize

    folder = str(Path(settings["folder"]) / "litdata")
    block = SEQ_LEN + 1
    tokens = settings["tokens"] // block * block

    optimize(
        fn=_one_document,
        inputs=[tokens],
        output_dir=folder,
        chunk_size=block * 2048,
        item_loader=TokensLoader(),
        num_workers=1,
    )
    data = StreamingDataset(folder, item_loader=TokensLoader(block_size=block), shuffle=True)
    sum(1 for _ in data)

    def work() -> dict[str, Any]:
        done = 0
        for window in data:
            window.to(torch.int64)
            done += 1
        return _result(done)

    return work


def _one_document(tokens: int) -> Iterator[Any]:
    import torch

    yield torch.from_numpy(_plain(tokens).astype(np.int32))


def mosaic(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """MosaicML streaming over its own shards, shuffled (py1e)."""
    from streaming import MDSWriter, StreamingDataset

    folder = str(Path(settings["folder"]) / "mosaic")
    windows = (settings["tokens"] - 1) // SEQ_LEN
    plain = _plain(settings["tokens"])
    with MDSWriter(out=folder, columns={"tokens": f"ndarray:uint16:{SEQ_LEN + 1}"}) as writer:
        for number in range(windows):
            writer.write({"tokens": plain[number * SEQ_LEN : (number + 1) * SEQ_LEN + 1]})
    data = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    sum(1 for _ in data)

    return partial(_one_by_one, data, "tokens")


def _one_by_one(samples: Iterable[dict[str, Any]], column: str) -> dict[str, Any]:
    """All windows of a loader that yields them as uint16."""
    done = 0
    for sample in samples:
        sample[column].astype(np.int64)
        done += 1
    return _result(done)


def start(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """From nothing but Python to the first batch: imports, index, order."""

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        from pipeline.tokens.data import TokenData
        from pipeline.tokens.stream import Stream

        stream = Stream(TokenData.open(Path(settings["folder"]) / settings["corpus"]), SEQ_LEN, 1, {})
        stream.batch(int(stream.windows * settings["share"]), BATCH)
        return _result(BATCH) | {"first_batch": time.perf_counter() - began}

    return work


def _result(windows: int) -> dict[str, Any]:
    tokens = windows * (SEQ_LEN + 1)
    return {"bytes": tokens * 8, "documents": windows, "tokens": tokens}


# --- corpora -------------------------------------------------------------------------------------------------------


def _plain(tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(seed).integers(1, VOCABULARY, tokens, dtype=np.uint16)


def _tokens(folder: Path, tokens: int) -> None:
    """Token tars of two sources, in documents of 1,000 tokens."""
    from pipeline.tokens.token_tars import Index, ShardWriter, write_index

    parts: dict[str, Any] = {"train": {}, "validation": {}}
    for number, source in enumerate(("a", "b")):
        with ShardWriter(folder, f"train/{source}-00000", np.dtype(np.uint16), 1 << 26, 1 << 22) as writer:
            for begin in range(0, tokens // 2, 1_000_000):
                ids = _plain(min(1_000_000, tokens // 2 - begin), seed=number * 10_000 + begin // 1_000_000)
                writer.add(ids, np.unique(np.append(np.arange(1000, len(ids), 1000), len(ids))), 4 * len(ids))
        parts["train"][source] = tuple(writer.shards)
    write_index(folder, Index(VOCABULARY, 0, parts))


def _sparse(folder: Path, tokens: int) -> None:
    """An index of so many tokens, over files that are all holes."""
    from pipeline.tokens.token_tars import COLUMNS, Index, Shard, write_index

    (folder / "train").mkdir(parents=True)
    members = SHARD // MEMBER
    table = np.zeros((members, len(COLUMNS)), dtype=np.int64)
    span = MEMBER * 2 + (1 << 17)
    table[:, 0] = np.arange(members) * span + 640
    table[:, 1], table[:, 2], table[:, 3] = MEMBER, table[:, 0] + MEMBER * 2 + 1024, MEMBER // 1000
    shards = []
    for number in range(max(1, tokens // SHARD)):
        file = f"train/all-{number:05d}-000.tar"
        with open(folder / file, "wb") as handle:
            handle.truncate(members * span)
        shards.append(Shard.of(file, members * span, f"{number:064x}", 4 * SHARD, table))
    write_index(folder, Index(VOCABULARY, 0, {"train": {"all": tuple(shards)}, "validation": {}}))


def _cache(folder: Path, keep: bool) -> None:
    """Read all files into the page cache, or put them out of it."""
    for path in folder.rglob("*.tar"):
        descriptor = os.open(path, os.O_RDONLY)
        if keep:
            while os.read(descriptor, 1 << 22):
                pass
        else:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

"""Best-fit packing: whole documents side by side in windows, with little padding and no document cut without need.

Best fit, longest first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): each document goes to the
window with the least room that still holds it. A document longer than a window is cut every `seq_len` tokens; what is
left of it is packed as a document is, at the beginning of a window, behind the token that it goes on from. No token is
lost; the places that stay empty are told.

Packing is done within groups of neighbouring documents, so that memory is bounded, once for (tokens, seq_len): the
layout is a pure function of them, kept in files that are mapped (12 bytes a document and a window: a hundredth of the
tokens or so). It needs the ends of all documents: of remote tokens all shards are fetched once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.files import TEMPORARY, atomic_write, write_json
from pipeline.locks import wait_for_file
from pipeline.progress import log
from pipeline.tokens.data import SourceTokens, TokenData
from pipeline.tokens.windows import PIECE, WINDOW, Numbers, PackedWindows

FORMAT = 1  # of the layout; raised when the same tokens would be packed in another way
GROUP = 1 << 16  # documents that are packed together, or one member where it holds more
THREADS = 8  # groups at a time
ABOUT = "packing.json"  # written last


@dataclass(frozen=True)
class Packed:
    """How a source was packed. cut: documents that were longer than a window."""

    windows: int
    pieces: int
    documents: int
    cut: int
    tokens: int


def pack(data: TokenData, seq_len: int, folder: Path) -> dict[str, PackedWindows]:
    """The packed windows of each training source; `folder` keeps the layout. Any number of processes may call it.

    Raises: BadShard when the ends of documents cannot be read.
    """
    here = folder / f"{data.fingerprint[:16]}-{seq_len}"
    found = _read(data, seq_len, here)
    if found is None:
        here.mkdir(parents=True, exist_ok=True)
        with _alone(here):
            found = _read(data, seq_len, here)
            if found is None:
                _make(data, seq_len, here)
                found = _read(data, seq_len, here)
    assert found is not None
    return found


def _make(data: TokenData, seq_len: int, here: Path) -> None:
    for left in here.glob(f"*{TEMPORARY}"):  # by a process that was killed
        left.unlink(missing_ok=True)
    sources = data.sources("train")
    log.info(f"packing: documents are fitted into windows of {seq_len:,} tokens, once")
    about = {}
    for number, name in enumerate(sources):
        packed = _pack_source(data.source("train", name), seq_len, here / f"{number}")
        about[name] = vars(packed)
        log.info(
            f"packing: {name}: {packed.documents:,} documents in {packed.windows:,} windows, {packed.cut:,} of them "
            f"longer than one; {1 - packed.tokens / (packed.windows * seq_len):.3%} of the places stay empty, no "
            "token is lost"
        )
    head = {"format": FORMAT, "group": GROUP, "tokens": data.fingerprint, "seq_len": seq_len}
    write_json(here / ABOUT, head | {"sources": about}, own=True)


def _read(data: TokenData, seq_len: int, here: Path) -> dict[str, PackedWindows] | None:
    """None where it has not been made, or not whole."""
    try:
        about: dict[str, Any] = json.loads((here / ABOUT).read_text(encoding="utf-8"))
        if (about["format"], about["group"], about["tokens"]) != (FORMAT, GROUP, data.fingerprint):
            return None
        found = {}
        for number, (name, packed) in enumerate(about["sources"].items()):
            pieces, windows = _files(here / f"{number}")
            tokens = data.source("train", name)
            found[name] = PackedWindows(tokens, seq_len, data.eos_id, pieces, windows)
            if len(found[name]) != packed["windows"] or packed["tokens"] != len(tokens):
                return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        log.warning(f"{here}: not a whole packing ({error}); it is made again")
        return None
    return found


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".pieces"), stem.with_suffix(".windows")


def _pack_source(tokens: SourceTokens, seq_len: int, stem: Path) -> Packed:
    """Write the layout of one source."""
    files = _files(stem)
    windows = pieces = documents = cut = 0

    def fit(members: range) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void], int, int]:
        starts, lengths = _documents(tokens, members)
        laid, filled = lay_out(starts, lengths, seq_len)
        return laid, filled, len(lengths), int((lengths > seq_len).sum())

    with (
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
        atomic_write(files[0], own=True) as piece_file,
        atomic_write(files[1], own=True) as window_file,
    ):
        groups = _groups(tokens)
        while some := list(islice(groups, THREADS)):
            for laid, filled, count, longer in pool.map(fit, some):
                filled["first"] += pieces
                piece_file.write(laid.tobytes())
                window_file.write(filled.tobytes())
                windows, pieces = windows + len(filled), pieces + len(laid)
                documents, cut = documents + count, cut + longer
        window_file.write(np.array([(pieces, 0)], dtype=WINDOW).tobytes())
    return Packed(windows, pieces, documents, cut, len(tokens))


def _groups(tokens: SourceTokens) -> Iterator[range]:
    """Neighbouring members, as many as hold GROUP documents."""
    begin = held = 0
    for member, documents in enumerate(tokens.documents.tolist()):
        if held and held + documents > GROUP:
            yield range(begin, member)
            begin, held = member, 0
        held += documents
    if held:
        yield range(begin, len(tokens.documents))


def _documents(tokens: SourceTokens, members: range) -> tuple[Numbers, Numbers]:
    """Where the documents of these members begin in the source, and how long they are; none that is empty."""
    bounds = np.concatenate([[tokens.member_start(members[0])], *(tokens.ends(member) for member in members)])
    starts, lengths = bounds[:-1], np.diff(bounds)
    return starts[lengths > 0], lengths[lengths > 0]


def lay_out(starts: Numbers, lengths: Numbers, seq_len: int) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """The pieces (PIECE) of these documents in the order of their windows, and the windows (WINDOW), counted from 0.

    Windows come in the order of their first documents, so that neighbours stay neighbours.
    """
    parts = -(-lengths // seq_len)
    owner = np.repeat(np.arange(len(lengths)), parts)
    part = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
    begins = starts[owner] + part * seq_len
    sizes = np.minimum(lengths[owner] - part * seq_len, seq_len)
    goes_on = part > 0
    longest_first = np.argsort(-sizes, kind="stable")
    windows = np.empty(len(sizes), dtype=np.int64)
    windows[longest_first] = best_fit(sizes[longest_first], goes_on[longest_first], seq_len)
    _, seen, windows = np.unique(windows, return_index=True, return_inverse=True)
    rank = np.empty(len(seen), dtype=np.int64)
    rank[np.argsort(seen)] = np.arange(len(seen))
    windows = rank[windows]
    order = np.lexsort((begins, ~goes_on, windows))
    laid = np.empty(len(order), dtype=PIECE)
    laid["start"], laid["length"] = begins[order] - goes_on[order], sizes[order] + goes_on[order]
    filled = np.empty(len(seen), dtype=WINDOW)
    filled["first"] = np.searchsorted(windows[order], np.arange(len(seen)))
    filled["targets"] = np.bincount(windows, sizes, len(seen))
    return laid, filled


@compiled
def best_fit(sizes: Numbers, goes_on: npt.NDArray[np.bool_], room: int) -> Numbers:
    """The window of each piece, where pieces come longest first and each window has `room` places.

    No window takes two pieces that go on from another one: only its first has its context before it.
    """
    found = np.empty(len(sizes), np.int64)
    # windows by the room they have left, as linked lists; [1]: those that begin with a piece that goes on
    heads = np.full((2, room + 1), -1, np.int64)
    after = np.empty(len(sizes), np.int64)
    held = np.zeros((2, (room >> 6) + 1), np.int64)  # windows in 64 neighbouring lists
    count = 0
    for piece in range(len(sizes)):
        best, taken = room + 1, 0
        for kind in range(0 if goes_on[piece] else 1, -1, -1):
            left = sizes[piece]
            while left < best and left <= room:
                if held[kind, left >> 6] == 0:
                    left = ((left >> 6) + 1) << 6
                elif heads[kind, left] >= 0:
                    best, taken = left, kind
                else:
                    left += 1
        if best > room:
            window, best, taken = count, room, 0
            count += 1
        else:
            window = heads[taken, best]
            heads[taken, best] = after[window]
            held[taken, best >> 6] -= 1
        found[piece] = window
        left = best - sizes[piece]
        if left > 0:
            kind = 1 if goes_on[piece] or taken == 1 else 0
            after[window] = heads[kind, left]
            heads[kind, left] = window
            held[kind, left >> 6] += 1
    return found


@contextlib.contextmanager
def _alone(here: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks; else they all make the same, under names of their own."""
    lock = here / "lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):
            wait_for_file(descriptor, lock, "packing")
        yield
    finally:
        os.close(descriptor)

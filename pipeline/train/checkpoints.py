"""Checkpoints, written behind the training: a snapshot to host memory, then a thread a rank writes it.

Every rank writes the fragments that it owns (fragments.py), so that any number of ranks and any ZeRO stage can read
them: nothing is converted. Rank 0's thread waits by looking for the receipts of all, and commits by one rename. No
collective runs off the main thread.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault, Fenced
from pipeline.files import TEMPORARY, disk_errors, sync_directory, write_json, write_text
from pipeline.progress import log
from pipeline.recipe import TrainingBase
from pipeline.train import checkpoint_files, fragments, restore
from pipeline.train.audit import Audit
from pipeline.train.checkpoint_files import DESCRIPTION, INDEX, POINTER, RANDOM, Checkpoint, path_of
from pipeline.train.collective import broadcast, gather, reduce_max, reduce_sum
from pipeline.train.fragments import Fragment
from pipeline.train.snapshot import Snapshot
from pipeline.train.tensor_files import checksum_file

SPARE = 64 << 20  # bytes that must stay free beside a checkpoint
PATIENCE = 1800.0  # seconds that rank 0 waits for another rank's receipt
NICENESS = 10  # of the writing thread: the steps come first
RECEIPT = ".receipt.json"  # a rank's part is written: its files and fragments

Receipt = tuple[dict[str, tuple[int, str]], list[list[Any]]]


@dataclass(frozen=True)
class Saved:
    """A commit. snapshot_seconds: for which training stood still; write_seconds: until committed; bytes: of all."""

    step: int
    snapshot_seconds: float
    write_seconds: float
    bytes: int


class Checkpoints:
    """Saves to and loads from `folder`. Every rank makes one and calls the same methods in the same order.

    fence: called before each commit; raises when another command has taken the run over. audit: told of each save.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        settings: TrainingBase,
        fence: Callable[[], None] = lambda: None,
        audit: Audit | None = None,
    ) -> None:
        self.folder, self.ranks, self.settings, self.fence, self.audit = folder, ranks, settings, fence, audit
        self.token = broadcast(secrets.token_hex(4))
        if ranks.first:
            fence()
            checkpoint_files.sweep(folder)  # or its bytes would be missing for the next save
        self._seed = torch.initial_seed()
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._written = threading.Event()  # this rank's files are there, or never will be
        self._given_up = threading.Event()  # another rank's files never will be
        self._error: Exception | None = None  # what this rank's thread met
        self._failure = ""  # why the last save is not there; the same on all ranks
        self._fatal = False  # whether that must end the training
        self._temporary = folder
        self._done: Saved | None = None

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, engine: Any, about: Checkpoint) -> None:
        """Take a snapshot and return; it is written behind. All ranks together.

        An earlier save that is still being written is waited for. One that cannot be made (no room) is told, and
        training may go on: `wait` raises it. Raises: EnvironmentFault when another command has taken over.
        """
        if self.ranks.first and self._thread is not None and self._thread.is_alive():
            log.info(f"checkpoint: step {about.step:,} waits for the one before, which is still being written")
        began = time.perf_counter()
        self.settle()
        blocks = fragments.blocks(engine, self.ranks)
        found = [fragment for block in blocks for fragment in block.fragments()]
        found += [
            Fragment(f"{RANDOM}{self.ranks.rank:05d}", name, 0, state) for name, state in restore.random_state().items()
        ]
        needed = int(reduce_sum([float(sum(fragment.tensor.nbytes for fragment in found))])[0])
        self._error, self._failure = None, broadcast(self._no_room(needed, about.step) if self.ranks.first else "")
        if self._failure:
            self._tell(about.step, self._failure)
            return
        self._snapshot.take(found)
        scalars = {name: block.scalars() for block in blocks for name in block.members}
        shapes = fragments.shapes(engine)
        about = replace(about, engine=fragments.counters(engine))
        final = path_of(self.folder, about.step)
        self._temporary = final.with_name(f"{final.name}.{self.token}{TEMPORARY}")
        stood = reduce_max([time.perf_counter() - began])[0]
        self._written.clear()
        self._given_up.clear()
        self._thread = threading.Thread(
            target=self._write,
            args=(about, self._temporary, shapes, scalars, stood),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def committed(self) -> Saved | None:
        """The newest commit since the last call, on rank 0; never waits."""
        done, self._done = self._done, None
        return done

    def settle(self) -> None:
        """Return when nothing is being written any more. All ranks together.

        Raises: EnvironmentFault when the last save failed for a reason that no other try can mend: another command
        has taken over.
        """
        self._join()
        if self._fatal:
            self._raise()

    def wait(self) -> None:
        """Return when everything saved is committed. All ranks together.

        Raises: EnvironmentFault saying why the last save is not there (disk full, another command has taken over).
        """
        self._join()
        if self._failure:
            self._raise()

    def close(self) -> None:
        """Leave. What is not committed by now stays behind under a temporary name, for the next start to delete."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _join(self) -> None:
        """Wait for the threads of all ranks, and agree on how it went."""
        if self._thread is None:
            return
        self._written.wait()
        met = gather(self._met())
        if any(met):
            self._given_up.set()
        if self.ranks.first:
            self._thread.join()
            met = [self._met(), *met]
            if any(met):
                shutil.rmtree(self._temporary, ignore_errors=True)
        self._thread = None
        self._failure, self._fatal = broadcast(next((found for found in met if found), None)) or ("", False)

    def _met(self) -> tuple[str, bool] | None:
        """What went wrong on this rank, and whether another try cannot help: only what the disk does can change."""
        if self._error is None:
            return None
        return str(self._error), isinstance(self._error, Fenced) or not isinstance(
            self._error, (OSError, EnvironmentFault)
        )

    def _raise(self) -> None:
        raise self._error or EnvironmentFault(self._failure)

    def _no_room(self, needed: int, step: int) -> str:
        """Empty when the disk has room for a checkpoint of so many bytes."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        if free >= needed + SPARE:
            return ""
        return (
            f"{self.folder}: no room for the checkpoint of step {step:,}: it needs {needed:,} bytes and {free:,} are "
            f"free; free {needed + SPARE - free:,} more, or set workdir=… to a larger disk"
        )

    def _tell(self, step: int, problem: str) -> None:
        """A save that could not be made."""
        if self.ranks.first:
            log.error(f"checkpoint of step {step:,} is not saved: {problem}")
            self._record("save_failed", step, why=problem)

    def _record(self, kind: str, step: int, **values: Any) -> None:
        """Put an event into the audit log. A disk that is full, or a run that was taken over, is told only: whoever
        waits for the save hears of it, and a thread has nobody to raise it to."""
        if self.audit is not None:
            try:
                self.audit.event(kind, step, **values)
            except (EnvironmentFault, OSError) as error:
                log.warning(f"not in the audit log: {kind} of step {step:,}: {error}")

    # --- on the thread ---------------------------------------------------------------------------------------------

    def _write(
        self,
        about: Checkpoint,
        temporary: Path,
        shapes: dict[str, list[int]],
        scalars: dict[str, dict[str, float]],
        stood: float,
    ) -> None:
        """This rank's files; on rank 0 then the commit."""
        began = time.perf_counter()
        prefix = f"rank-{self.ranks.rank:05d}"
        try:
            _step_back()
            with disk_errors(temporary):
                temporary.mkdir(parents=True, exist_ok=True)
                files, written = self._snapshot.write(temporary, prefix)
                if not self.ranks.first:
                    leave_receipt(temporary / f"{prefix}{RECEIPT}", (files, written))
        except Exception as error:  # the main thread raises it, when it comes to the next save
            self._error = error
            for path in temporary.glob(f"{prefix}*"):
                path.unlink(missing_ok=True)
        finally:
            self._written.set()
        if not self.ranks.first:
            return
        try:
            if self._error is None:
                receipts = [(files, written), *self._receipts(temporary)]
                size = self._commit(about, temporary, receipts, shapes, scalars)
        except Exception as error:
            self._error = error
        if self._error is not None:
            self._tell(about.step, str(self._error))
            return
        took = time.perf_counter() - began
        self._done = Saved(about.step, stood, took, size)
        log.info(
            f"checkpoint: step {about.step:,} is saved, {size / 1e6:,.1f} MB; training stood still for {stood:.2f} s, "
            f"written behind it in {took:.1f} s"
        )
        self._record("saved", about.step, snapshot_seconds=round(stood, 3), write_seconds=round(took, 3), bytes=size)

    def _receipts(self, temporary: Path) -> Iterator[Receipt]:
        """Those of the other ranks, in their order; looks for them.

        Raises: EnvironmentFault when one does not come.
        """
        for rank in range(1, self.ranks.world_size):
            path = temporary / f"rank-{rank:05d}{RECEIPT}"
            deadline = time.monotonic() + PATIENCE
            while not path.is_file():
                if self._given_up.wait(0.05):
                    raise EnvironmentFault(f"{temporary}: rank {rank} could not write its part")
                if time.monotonic() > deadline:
                    raise EnvironmentFault(f"{temporary}: rank {rank} wrote nothing here for {PATIENCE:.0f} s")
            found = json.loads(path.read_text(encoding="utf-8"))
            yield found["files"], found["fragments"]

    def _commit(
        self,
        about: Checkpoint,
        temporary: Path,
        receipts: list[Receipt],
        shapes: dict[str, list[int]],
        scalars: dict[str, dict[str, float]],
    ) -> int:
        """Describe what all ranks have written, sync, rename. Returns the number of bytes.

        Raises: Exception of the fence; EnvironmentFault when the disk is full.
        """
        final = path_of(self.folder, about.step)
        files = {name: item for part, _ in receipts for name, item in part.items()}
        index = checkpoint_files.index_of(shapes, scalars, (line for _, part in receipts for line in part))
        with disk_errors(final):
            write_text(temporary / INDEX, json.dumps(index))
            files[INDEX] = ((temporary / INDEX).stat().st_size, checksum_file(temporary / INDEX))
            for path in temporary.glob(f"*{RECEIPT}"):
                path.unlink()
            write_json(temporary / DESCRIPTION, asdict(about) | {"files": dict(sorted(files.items()))})
            if final.exists():
                self.fence()
                checkpoint_files.discard(final)  # damaged, or of a history that was left
            self.fence()  # last of all: a process may be stopped anywhere, and go on as a ghost
            temporary.rename(final)
            sync_directory(self.folder)
            write_text(self.folder / POINTER, final.name + "\n")
            # One that may lie in a spike (loss_policy.py) takes no good one's place.
            keep = self.settings.keep_checkpoints + bool(about.state.get("suspicious"))
            try:
                checkpoint_files.prune(
                    self.folder,
                    keep,
                    self.settings.keep_every,
                    about.step,
                    self.token,
                    self.fence,
                    about.state.get("best"),
                )
            except OSError as error:  # this one is saved all the same
                log.warning(f"checkpoint: old ones cannot be deleted: {error}")
        return sum(size for size, _ in files.values())

    # --- loading ---------------------------------------------------------------------------------------------------

    def latest(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that is whole; damaged ones are passed over, with a line and an event each.

        All ranks together. Raises: DataError when there are checkpoints and none is whole.
        """
        found = checkpoint_files.latest(self.folder, self.ranks)
        if found is None:
            return None
        path, saved, wrong = found
        if self.audit is not None:
            for problem in wrong:
                self.audit.event("damaged", saved.step, why=problem)
        return path, saved

    def load(self, engine: Any, path: Path) -> None:
        """Put a checkpoint into the engine, whatever number of ranks and ZeRO stage made it. All ranks together.

        Raises: DataError when it is of another model.
        """
        restore.load(engine, path, self.ranks, self._seed)


def _step_back() -> None:
    """Let the training's own threads go first. Linux gives each thread a niceness of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def leave_receipt(path: Path, receipt: Receipt) -> None:
    """Say that a rank's part is written. Renaming is the last touch of the folder: rank 0 may rename that from then on.

    Not synced: after a crash of the machine an unfinished save is of no use.
    """
    half = path.with_name(path.name + TEMPORARY)
    half.write_text(json.dumps({"files": receipt[0], "fragments": receipt[1]}), encoding="utf-8")
    half.rename(path)

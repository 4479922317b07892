"""The training stream for other trainers: a `torch.utils.data.IterableDataset`, and samples for stock `webdataset`.

Batch t of rank r holds windows (t · world_size + r) · batch_size … of the one endless order (stream.py), whatever the
number of DataLoader workers: worker w of W makes batches w, w + W, …, which is the order in which a DataLoader asks
them. The state is how many windows all ranks together have been given, and the order's fingerprint; it may be loaded
on another number of ranks and workers.

    loader = TokenLoader("runs/demo/tokens", seq_len=2048, batch_size=8, rank=rank, world_size=world_size, workers=2)
    loader.load_state_dict(saved)                       # where one was saved: loader.state_dict()
    for windows in loader:                              # (8, 2049) int64: inputs [:, :-1], targets [:, 1:]
        …

Batches come ready made: `DataLoader(TokenBatches(…), batch_size=None)`. Stock webdataset takes the same data set as the
first stage of a pipeline: `wds.DataPipeline(TokenSamples(…), wds.to_tuple("tokens.npy"), …)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.integrity import Verify
from pipeline.tokens.packing import pack
from pipeline.tokens.stream import Stream


class TokenBatches(IterableDataset[Tensor]):
    """Endless batches of windows, (batch_size, seq_len + 1) int64; of one rank.

    Iterating goes on where the state says. Workers have copies of it, which know nothing of what the others give out:
    with them let a `TokenLoader` keep the state.
    """

    def __init__(
        self,
        place: Path | str,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        verify: Verify = "first_touch",
        cache: Path | None = None,
        cache_bytes: int = 0,
        packing: Path | None = None,
    ) -> None:
        """place: a tokens folder or its URL (then with `cache`, a local folder). weights: of sources; 1 where none.
        packing: documents whole, side by side (packing.py); their layout is made once and kept in this folder. Places
        that stay empty hold negative numbers; a document ends behind its end-of-text token (`eos_id`).

        Raises: DataError when there are no such tokens.
        """
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size}")
        self.place, self.seq_len, self.batch_size, self.seed = place, seq_len, batch_size, seed
        self.weights, self.rank, self.world_size, self.packing = dict(weights or {}), rank, world_size, packing
        self._open = (verify, None, cache, cache_bytes)
        self._stream: Stream | None = None
        self.position = 0  # windows that all ranks have been given
        self.fingerprint = self.stream.fingerprint

    @property
    def stream(self) -> Stream:
        """The order; opened in each process by itself."""
        if self._stream is None:
            data = TokenData.open(self.place, *self._open)
            packed = pack(data, self.seq_len, self.packing) if self.packing else None
            self._stream = Stream(data, self.seq_len, self.seed, self.weights, packed=packed)
        return self._stream

    @property
    def eos_id(self) -> int:
        """The token that ends each document."""
        return self.stream.data.eos_id

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None}  # files and threads stay in their process

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            self._stream = None  # a forked one would share the parent's thread and locks
        step = self.world_size * self.batch_size
        position = self.position + number * step
        while True:
            self.stream.want(position, 4 * workers * step)
            windows = torch.from_numpy(self.stream.batch(position + self.rank * self.batch_size, self.batch_size))
            position += workers * step
            self.position = position if workers == 1 else self.position
            yield windows

    def state_dict(self) -> dict[str, Any]:
        """The windows that were given out (no worker), and the order that they are counted in."""
        return {"windows": self.position, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, on whatever number of ranks. Raises: DataError when it is of another order."""
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{self.place}: the state is of another order ({state['fingerprint'][:12]}, not "
                f"{self.fingerprint[:12]}): tokens, seq_len, seed or weights were others, or Headwater's order was"
            )
        self.position = int(state["windows"])


class TokenLoader:
    """A DataLoader over `TokenBatches` that knows how much of it was used; iterating again goes on."""

    def __init__(self, place: Path | str, seq_len: int, batch_size: int, *, workers: int = 0, **options: Any) -> None:
        """options: of `TokenBatches`, and `pin_memory`."""
        self._pin, self._workers = bool(options.pop("pin_memory", False)), workers
        self.batches = TokenBatches(place, seq_len, batch_size, **options)

    def __iter__(self) -> Iterator[Tensor]:
        step = self.batches.world_size * self.batches.batch_size
        begin = self.batches.position
        loader = DataLoader(self.batches, batch_size=None, num_workers=self._workers, pin_memory=self._pin)
        for number, windows in enumerate(loader, 1):
            self.batches.position = begin + number * step
            yield windows

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on; small, and the same on every rank."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next iterator does. Raises: DataError when it is of another order."""
        self.batches.load_state_dict(state)


class TokenSamples(IterableDataset[dict[str, Any]]):
    """The same windows one by one, as stock webdataset's samples: {"__key__", "__url__", "tokens.npy"}.

    Give it `batch_size=1` and the other arguments of `TokenBatches`; the state is that of `batches`.
    """

    def __init__(self, place: Path | str, seq_len: int, **options: Any) -> None:
        self.batches = TokenBatches(place, seq_len, batch_size=1, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        key = self.batches.position // self.batches.world_size + number
        for windows in self.batches:
            sample = {"__key__": f"{key * self.batches.world_size + self.batches.rank:012d}"}
            yield sample | {"__url__": str(self.batches.place), "tokens.npy": windows[0].numpy()}
            key += workers

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches.load_state_dict(state)

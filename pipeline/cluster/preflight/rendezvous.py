"""Where ranks meet before they are a process group: a store at rank 0, so that those who do not come can be named.

torch's own start waits for all ranks or fails, and says not who was missing. Here each rank leaves a note with its
name on it, and whoever reads notes waits for a bounded time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipeline.cluster.ranks import Ranks
from pipeline.errors import EnvironmentFault, Unfit

PREFIX = "headwater-preflight"
VERDICT = "status/0"  # the last note of rank 0


class Silent(Exception):
    """A rank has not left the note that it was to leave."""

    def __init__(self, rank: int, what: str) -> None:
        super().__init__(f"rank {rank} {what}")
        self.rank = rank


class Over(Exception):
    """Rank 0 has given its verdict, and asks nothing more."""


class Meeting:
    """Notes of all ranks, by key and rank; values are JSON. Not to be shared between threads."""

    def __init__(self, store: Any, ranks: Ranks) -> None:
        self.store = store
        self.ranks = ranks

    def put(self, key: str, value: Any) -> None:
        """Leave this rank's note."""
        self.store.set(f"{key}/{self.ranks.rank}", json.dumps(value))

    def read(self, key: str, rank: int, patience: float) -> Any:
        """A rank's note, waited for. Raises: Silent after `patience` seconds; Over; Unfit: rank 0 is gone."""
        name = f"{key}/{rank}"
        deadline = time.monotonic() + patience
        pause = 0.0005
        try:
            # Looking again and again, not TCPStore.wait: that warns on standard error when it times out.
            while not self.store.check([name]):
                if not self.ranks.first and name != VERDICT and self.store.check([VERDICT]):
                    raise Over
                if time.monotonic() > deadline:
                    raise Silent(rank, f"has not answered for {patience:.0f} s ({key})")
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            return json.loads(self.store.get(name))
        except RuntimeError as error:
            raise Unfit(
                f"rank {self.ranks.rank} lost the connection to rank 0 ({self.ranks.address}:{self.ranks.port}), which "
                f"may have died: {str(error).splitlines()[0]}"
            ) from error

    def collect(self, key: str, of: Iterable[int], patience: float) -> tuple[dict[int, Any], list[int]]:
        """The notes of several ranks, and the ranks that left none within `patience` seconds in all."""
        deadline = time.monotonic() + patience
        found: dict[int, Any] = {}
        missing: list[int] = []
        for rank in of:
            try:
                found[rank] = self.read(key, rank, deadline - time.monotonic())
            except Silent:
                missing.append(rank)
        return found, missing


def meet(ranks: Ranks, patience: float) -> Meeting:
    """Open the store (rank 0) or connect to it.

    Raises: Unfit when rank 0 does not answer within `patience` seconds; EnvironmentFault: its port is taken.
    """
    return Meeting(_store(ranks, patience, master=ranks.first), ranks)


def meet_again(ranks: Ranks, patience: float) -> Meeting:
    """A second connection to a store that is open, for another thread."""
    return Meeting(_store(ranks, patience, master=False), ranks)


_alone = None  # the store of a process that is alone; both connections must be the same one


def _store(ranks: Ranks, patience: float, master: bool) -> Any:
    global _alone  # noqa: PLW0603
    if ranks.port is None:
        _alone = _alone or dist.HashStore()  # type: ignore[attr-defined]
        return _alone
    # torchrun's agent holds MASTER_PORT with a store of its own, for its workers to use.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        if not master or agents:
            _wait_for_port(ranks.address, ranks.port, patience)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            ranks.address,
            ranks.port,
            is_master=master and not agents,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as error:
        why = str(error).splitlines()[0]
        if master and not agents:
            raise EnvironmentFault(
                f"rank 0 cannot listen on port {ranks.port}: {why}; set MASTER_PORT to a free port"
            ) from error
        raise Unfit(
            f"rank {ranks.rank}: rank 0 did not answer at {ranks.address}:{ranks.port} within {patience:.0f} s: it has "
            f"not started, has died, or the network between is cut ({why})"
        ) from error
    return dist.PrefixStore(f"{PREFIX}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _wait_for_port(address: str, port: int, patience: float) -> None:
    """Until somebody listens there: TCPStore's own tries would fill the log. Raises: OSError of the last try."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, patience / 4)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)

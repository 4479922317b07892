"""Who is gone, when the network says only that somebody is: the rank that ended first, and why.

"Connection closed by peer" reaches every rank that is left. The one that is to blame has either said in its last
heartbeat by which error it ended, or its process is gone, or its heartbeat stands still.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.ranks import Ranks
from pipeline.train.hang_report import GONE, Peer, heartbeat_path, process_state

NETWORK = ("gloo", "NCCL", "ProcessGroup", "Connection", "Broken pipe", "Socket", "closed by peer")


@dataclass(frozen=True)
class Lost:
    """words: one line for a person; status: with which it ended by itself, None when it was killed."""

    rank: int
    words: str
    status: int | None


def of_network(error: BaseException) -> bool:
    """Whether an error may come of another rank's end. Torch's are RuntimeErrors with text from gloo or NCCL."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in NETWORK)


def find(beats: Path, token: str, ranks: Ranks, peers: Sequence[Peer], patience: float) -> Lost | None:
    """The other rank that ended first; None when all seem alive after `patience` seconds."""
    others = [peer for peer in peers if peer.rank != ranks.rank]
    here = peers[ranks.rank].host
    began, seen = time.monotonic(), {peer.rank: _heartbeat(beats, token, peer) for peer in others}
    while True:
        late = time.monotonic() - began > patience
        killed = []
        for peer in others:
            beat = _heartbeat(beats, token, peer)
            who = f"rank {peer.rank} ({peer.host}, process {peer.pid})"
            if beat.get("error"):
                return Lost(peer.rank, f"{who} ended first: {beat['error']}", int(beat["status"]))
            if beat.get("doing") == "ended":
                continue  # it followed another one
            if peer.host == here and process_state(peer.pid) in GONE:
                killed.append(Lost(peer.rank, f"{who} is dead: killed, perhaps for want of memory", None))
            elif peer.host != here and late and beat.get("time") == seen[peer.rank].get("time"):
                killed.append(Lost(peer.rank, f"{who} is gone: killed, or its host is down or cut off", None))
        # One that ended by an error has said so before it was gone; a moment later its word can be read.
        if killed and time.monotonic() - began > min(1.0, patience):
            return killed[0]
        if late:
            return None
        time.sleep(0.2)


def _heartbeat(beats: Path, token: str, peer: Peer) -> dict[str, Any]:
    """A rank's last heartbeat of this start; empty when there is none."""
    try:
        found = json.loads(heartbeat_path(beats, peer.rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("token") == token else {}

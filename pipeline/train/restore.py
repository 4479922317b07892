"""Puts a checkpoint into an engine, whatever number of ranks and ZeRO stage made it: each rank reads what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError
from pipeline.train import checkpoint_files, fragments
from pipeline.train.checkpoint_files import RANDOM
from pipeline.train.tensor_files import Ranges


def load(engine: Any, path: Path, ranks: Ranks, seed: int) -> None:
    """All ranks together. seed: this rank's own, for random numbers when the number of ranks has changed.

    Raises: DataError when it is of another model.
    """
    saved = checkpoint_files.read_description(path)
    ranges = checkpoint_files.open_ranges(path)
    known = {name: shape for name, (_, shape) in checkpoint_files.parameters_of(ranges).items()}
    here = fragments.shapes(engine)
    if known != here:
        name = next(name for name in (*known, *here) if known.get(name) != here.get(name))
        raise DataError(
            f"{path}: holds another model: {name} is {known.get(name, 'absent')} there and "
            f"{here.get(name, 'absent')} here; move {path.parent} away, or set workdir=…"
        )
    fragments.before_loading(engine)
    for block in fragments.blocks(engine, ranks):
        block.prepare(ranges.kinds(block.members), ranges.scalars(block.members))
        for place in block.places():
            if not ranges.read(place.name, place.state, place.offset, place.tensor):
                place.tensor.zero_()  # others of its group had such a state
    fragments.refresh(engine)
    fragments.set_counters(engine, saved.engine)
    if saved.world_size == ranks.world_size:
        _set_random_state(ranges, f"{RANDOM}{ranks.rank:05d}")
    else:
        torch.manual_seed((seed * 1_000_003 + saved.step) % 2**63)  # whatever was drawn before
    ranges.close()


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's generators of random numbers, by device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(ranges: Ranges, name: str) -> None:
    for kind, state in random_state().items():
        if ranges.read(name, kind, 0, state):
            if kind == "cuda":
                torch.cuda.set_rng_state(state)
            else:
                torch.set_rng_state(state)

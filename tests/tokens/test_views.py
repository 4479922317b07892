"""The stream for other trainers: the same windows for every world size and number of workers, across restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.packing import pack
from pipeline.tokens.stream import Stream
from pipeline.tokens.views import TokenBatches, TokenLoader, TokenSamples

SEQ_LEN = 10
WEIGHTS = {"b": 2.5}


@pytest.fixture(scope="module")
def data(tokens_of: Callable[..., TokenData], tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tokens_of(tmp_path_factory.mktemp("views"), {"a": 300, "b": 120, "c": 40})


def reference(data: TokenData, first: int, count: int) -> torch.Tensor:
    return torch.from_numpy(Stream(data, SEQ_LEN, 7, WEIGHTS).batch(first, count))


def take(loader: TokenLoader, count: int) -> list[torch.Tensor]:
    found = []
    for windows in loader:
        found.append(windows.clone())
        if len(found) == count:
            break
    return found


def ranks(
    data: TokenData, world: int, workers: int, state: dict[str, object] | None, steps: int
) -> tuple[list[torch.Tensor], dict[str, object]]:
    """What all ranks get in so many steps, in the order of the stream, and the state then."""
    loaders = [
        TokenLoader(
            data.folder,
            SEQ_LEN,
            2,
            workers=workers,
            seed=7,
            weights=WEIGHTS,
            rank=rank,
            world_size=world,
            verify="never",
        )
        for rank in range(world)
    ]
    parts = []
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
        parts.append(take(loader, steps))
    states = [loader.state_dict() for loader in loaders]
    assert all(each == states[0] for each in states)
    return [parts[rank][step] for step in range(steps) for rank in range(world)], states[0]


STARTS = st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([0, 1, 3]), st.integers(1, 12))


@given(st.lists(STARTS, min_size=3, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_restarted_twice_on_any_world_with_any_workers_across_epochs(
    data: TokenData, starts: list[tuple[int, int, int]]
) -> None:
    """An epoch has 45 windows or so: most runs cross its end."""
    found: list[torch.Tensor] = []
    state = None
    for world, workers, steps in starts:
        pieces, state = ranks(data, world, workers, state, steps)
        found += pieces
    whole = torch.cat(found)
    assert state is not None and state["windows"] == len(whole)
    assert torch.equal(whole, reference(data, 0, len(whole)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_each_world_with_each_number_of_workers(data: TokenData, world: int, workers: int) -> None:
    """Restarted twice, the second time in the next epoch."""
    steps = [7, 2, 50 // (2 * world) + 1]
    found: list[torch.Tensor] = []
    state = None
    for count in steps:
        pieces, state = ranks(data, world, workers, state, count)
        found += pieces
    whole = torch.cat(found)
    assert torch.equal(whole, reference(data, 0, len(whole)))
    assert state is not None and state["windows"] == len(whole) == 2 * world * sum(steps) > 60


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_documents(data: TokenData, tmp_path: Path, workers: int) -> None:
    packed = pack(data, SEQ_LEN, tmp_path / "first")
    stream = Stream(data, SEQ_LEN, 7, WEIGHTS, packed=packed)
    wanted = torch.from_numpy(stream.batch(0, 40))
    assert (wanted < 0).any()  # padding
    options: dict[str, Any] = {"seed": 7, "weights": WEIGHTS, "verify": "never", "packing": tmp_path / "kept"}
    loader = TokenLoader(data.folder, SEQ_LEN, 2, workers=workers, **options)
    first = take(loader, 5)
    other = TokenLoader(data.folder, SEQ_LEN, 2, **options)
    other.load_state_dict(loader.state_dict())
    assert torch.equal(torch.cat([*first, *take(other, 15)]), wanted)
    assert loader.batches.fingerprint == stream.fingerprint
    assert loader.batches.eos_id == data.eos_id
    with pytest.raises(DataError, match="another order"):
        TokenLoader(data.folder, SEQ_LEN, 2, seed=7, weights=WEIGHTS).load_state_dict(loader.state_dict())


def test_a_state_of_another_order_is_refused(data: TokenData) -> None:
    state = TokenBatches(data.folder, SEQ_LEN, 2, verify="never").state_dict()
    with pytest.raises(DataError, match="another order"):
        TokenBatches(data.folder, SEQ_LEN, 2, seed=1, verify="never").load_state_dict(state)
    with pytest.raises(DataError, match="rank 2 of 2"):
        TokenBatches(data.folder, SEQ_LEN, 2, rank=2, world_size=2)


def test_stock_webdataset_takes_it(data: TokenData) -> None:
    samples = TokenSamples(data.folder, SEQ_LEN, seed=7, weights=WEIGHTS, verify="never")
    pipeline = webdataset.DataPipeline(samples, webdataset.to_tuple("__key__", "tokens.npy"), webdataset.batched(4))
    keys, windows = next(iter(pipeline))
    assert keys == [f"{k:012d}" for k in range(4)]
    assert np.array_equal(np.asarray(windows), reference(data, 0, 4).numpy())


def test_the_state_of_a_remote_folder(data: TokenData, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(data.folder), "/views", recursive=True)
    loader = TokenLoader("memory://views", SEQ_LEN, 2, seed=7, weights=WEIGHTS, cache=tmp_path)
    assert torch.equal(torch.cat(take(loader, 10)), reference(data, 0, 20))
    assert loader.state_dict()["windows"] == 20

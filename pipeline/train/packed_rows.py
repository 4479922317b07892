"""Several examples side by side in one row, none seeing another: less padding, the same loss.

Positions begin anew with each example. `transformers` reads that as the border of a sequence and masks attention across
it (masking_utils.find_packed_sequence_indices; flash attention by cumulative lengths). Not every family asks it, so a
model is tried first: what it says of two short examples in one row must be what it says of each alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from pipeline.errors import DataError
from pipeline.tokens.windows import Numbers

TOLERANCE = 1e-3  # of a logit, as a share of the largest; seeing another example changes them by tenths
TRIED = (7, 9)  # tokens of the examples that are tried


def pack(lengths: Numbers, room: int) -> list[list[int]]:
    """The numbers of the examples in each row: best fit, longest first; rows in the order of their first examples, so
    that neighbours stay neighbours. No length may be more than `room`."""
    from pipeline.tokens.packing import best_fit  # numba, only where it is needed

    longest_first = np.argsort(-lengths, kind="stable")
    rows = np.empty(len(lengths), dtype=np.int64)
    rows[longest_first] = best_fit(lengths[longest_first], np.zeros(len(lengths), dtype=np.bool_), room)
    found: dict[int, list[int]] = {}
    for number, row in enumerate(rows.tolist()):
        found.setdefault(row, []).append(number)
    return list(found.values())


@torch.no_grad()
def check_kept_apart(model: Any, name: str) -> None:
    """Try whether a model (transformers PreTrainedModel, on the CPU) keeps examples in one row apart.

    Raises: DataError naming the task and the architecture when it does not.
    """
    kind = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise DataError(f"{name}: {kind} takes no positions, so packed examples would see each other; set packing: no")
    drawn = torch.Generator().manual_seed(0)
    words = min(model.config.get_text_config().vocab_size, 10_000)
    examples = [torch.randint(0, words, (1, length), generator=drawn) for length in TRIED]
    places = torch.cat([torch.arange(length) for length in TRIED])[None]
    was_training = model.training
    model.eval()
    alone = torch.cat([model(input_ids=tokens).logits for tokens in examples], dim=1)
    together = model(input_ids=torch.cat(examples, dim=1), position_ids=places).logits
    model.train(was_training)
    difference = float((together - alone).abs().max() / alone.abs().max())
    if not difference <= TOLERANCE:
        raise DataError(
            f"{name}: {kind} lets packed examples see each other (logits change by {difference:.2g} of the largest); "
            "set packing: no"
        )

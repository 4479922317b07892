"""`train` in plain torch, on our model, as one writes it: autocast, and attention, loss and AdamW as torch has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from train_cases import Case
from train_clock import Clock, Tokens

from pipeline.cluster.device import Device
from pipeline.cluster.ranks import Ranks
from pipeline.model import transformer
from pipeline.model.build import build_model

CLIP = 1.0  # norm of the gradient, as in our loop


def suits_nothing(_query: torch.Tensor) -> bool:
    """In place of `suits`: the model's attention is torch's own on a CPU, too. One function, lest it compile again."""
    return False


def train(case: Case, clock: Clock, ranks: Ranks, device: Device, folder: Path) -> None:
    """Train until the clock says that it is enough. One process, one device."""
    size, place = case.size, device.torch_device
    tokens = Tokens(size)
    model = build_model(size.model, size.words, 1).to(place)
    if case.kind == "torch-bf16":
        model.to(torch.bfloat16)
    run: Any = torch.compile(model) if case.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    autocast = case.kind == "torch" and case.dtype == "bf16"
    place_in_data = 0
    while not clock.over():
        for first in range(0, size.sequences, size.micro):
            count = min(size.micro, size.sequences - first)
            rows = tokens.rows(range(place_in_data, place_in_data + count)).to(place)
            place_in_data += count
            own_attention = mock.patch.object(transformer, "suits", suits_nothing)
            with own_attention, torch.autocast(place.type, torch.bfloat16, enabled=autocast):
                logits = run(rows[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            (loss * count / size.sequences).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

"""What every reader of foreign token files gives: pieces of files, and batches of whole documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH_TOKENS = 1 << 20  # a batch holds about so many tokens, or one document


@dataclass(frozen=True)
class Piece:
    """A range of a file, which one task reads. begin, end: documents of a Megatron pair, else tokens; tokens: about."""

    path: Path
    begin: int
    end: int
    tokens: int


@dataclass(frozen=True)
class Batch:
    """Whole documents, one after another.

    ids: (tokens,) as stored; ends: (documents,) exclusive, in ids; first: the place of ids[0] in the file, in tokens;
    ended: whether the reader knows that each document ends there (else a file without end-of-text was merely cut).
    """

    ids: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    first: int
    ended: bool = True

from __future__ import annotations

import numpy as np

from pipeline.recipe import Recipe
from pipeline.tokens.data import TokenData


def test_it_runs(made: Recipe) -> None:
    data = TokenData.open(made.workdir / "tokens")
    print(data.tokens("train"), data.index)
    assert data.tokens("train") > 1000
    assert data.vocab_size == 700 and data.index.dtype == np.uint16

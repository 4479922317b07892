"""Stock webdataset reads token tars: nothing of ours is imported here (the fixture made them)."""

from __future__ import annotations

from typing import Any

import numpy as np
import webdataset as wds


def test_webdataset_reads_token_tars(made: Any) -> None:
    tars = sorted(str(path) for path in (made.workdir / "tokens" / "train").glob("*.tar"))
    assert len(tars) > 2
    samples = list(wds.WebDataset(tars, shardshuffle=False).decode())
    assert len(samples) > len(tars)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample in samples:
        ids, ends = sample["tokens.npy"], sample["ends.npy"]
        assert ids.dtype == np.uint16 and ids.ndim == 1
        assert ends[-1] == len(ids)
        assert (ids[ends.astype(np.int64) - 1] == 0).all()  # every document ends with the end-of-text token
        assert (ids == 0).sum() == len(ends)  # and it stands nowhere else

"""A shard goes bad while two ranks train: both leave out the same windows from the same step on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import forked
import numpy as np
from test_phases import recipe_in

from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.manifest import Work
from pipeline.progress import start_logging
from pipeline.tokens.data import TokenData
from pipeline.tracking import Tracker
from pipeline.train import pretrain
from pipeline.train.audit import events
from pipeline.train.phases import plan_phases
from pipeline.train.pretrain import PretrainTask
from pipeline.train.task import Batch

STEPS, SPOILT_AT = 24, 6
SHARD = "train/a-00000-002.tar"
VALUES = {"bad_shards": "skip", "verify": "never", "tokens": STEPS * 64, "micro_batch": 2}
"""Steps of 4 windows of 16 tokens."""


GIVEN: dict[int, int] = {}  # window → targets in it, as this rank was given it last


class Spoiling(PretrainTask):
    """Rank 1 spoils the shard when it is asked for the data of step SPOILT_AT; all note the targets they give."""

    def batch(self, sequences: Sequence[int]) -> Batch:
        ranks = read_ranks() or ALONE
        if ranks.rank == 1 and sequences[0] // self.sequences == SPOILT_AT:
            (shard,) = (each for each in self.data.index.parts["train"]["a"] if each.file == SHARD)
            with open(Path(self.data.folder) / SHARD, "r+b") as handle:
                for offset, tokens, *_ in shard.members.tolist():
                    handle.seek(offset)
                    handle.write(b"\xff\xff" * tokens)
        made = super().batch(sequences)
        for sequence, targets in zip(sequences, made["targets"], strict=True):
            if sequence >= 0:
                GIVEN[sequence] = int((targets >= 0).sum())
        return made


def spoil(folder: Path) -> None:
    """Train on the ranks it is started on; rank 1 spoils a shard on the way, and each writes what it was given."""
    start_logging()
    pretrain.PretrainTask = Spoiling  # type: ignore[misc]
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    pretrain.run(recipe_in(folder, **VALUES), Work("pretrain", checkpoints, "key", {}, {}), Tracker())
    ranks = read_ranks() or ALONE
    (folder / f"given-{ranks.rank}.json").write_text(json.dumps(GIVEN), encoding="utf-8")


def test_both_ranks_leave_out_the_same_windows(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, **VALUES)
    data = TokenData.open(tmp_path / "tokens")
    stream = plan_phases(recipe, data)[0].stream
    done = forked.run(tmp_path, spoil, tmp_path, ranks=2)
    assert done.status == 0, done.said
    (told,) = (event for event in events(tmp_path / "checkpoints") if event["kind"] == "bad_shard")
    assert told["file"] == SHARD
    offset = int(data.index.parts["train"]["a"][2].members[0, 0])
    assert f"{SHARD}: damaged at byte " in told["why"] and ", in member 0: token 65,535" in told["why"]
    assert offset <= int(told["why"].split("at byte ")[1].split(", in")[0].replace(",", "")) < offset + 600
    assert 1 <= told["step"] < STEPS
    given: dict[int, int] = {}
    for rank in range(2):
        mine = json.loads((tmp_path / f"given-{rank}.json").read_text(encoding="utf-8"))
        assert mine and not given.keys() & mine.keys()
        given |= {int(sequence): targets for sequence, targets in mine.items()}
    stream.left_out = {SHARD}
    wanted = [16 if sequence < 4 * told["step"] else stream.targets(sequence, 1) for sequence in range(4 * STEPS)]
    assert [given[sequence] for sequence in range(4 * STEPS)] == wanted
    assert 0 in wanted
    losses = json.loads((tmp_path / "checkpoints" / "final" / "losses.json").read_text(encoding="utf-8"))["losses"]
    assert len(losses) == STEPS and np.isfinite(losses).all()

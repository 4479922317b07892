from __future__ import annotations

import pytest

from pipeline.cluster.job_array import Share, read_share
from pipeline.errors import EnvironmentFault, RecipeError


def slurm(number: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    values = (number, first, last, step, count)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, values, strict=True)}


def test_every_item_falls_to_one_task() -> None:
    for count in (1, 2, 3, 7, 20):
        shares = [list(Share(number, count).of(range(10))) for number in range(count)]
        assert sorted(item for share in shares for item in share) == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_as_typed() -> None:
    assert read_share("0/1") == Share(0, 1)
    assert read_share("15/16") == Share(15, 16)
    for text in ("16/16", "0/0", "3/2"):
        with pytest.raises(RecipeError, match=f"--task {text}: tasks are counted from 0; of {text.split('/')[1]} "):
            read_share(text)
    for text in ("", "3", "-1/3", "1/3/5", "a/b", "1.0/2", "１/２"):
        with pytest.raises(RecipeError, match="write I/N, such as 0/16"):
            read_share(text)


def test_from_slurm() -> None:
    assert read_share("array", slurm(0, 0, 15, 1, 16)) == Share(0, 16)
    assert read_share("array", slurm(16, 1, 16, 1, 16)) == Share(15, 16)
    assert read_share("array", slurm(6, 0, 9, 3, 4)) == Share(2, 4)
    assert read_share("array", slurm(5, 5, 5, 1, 1)) == Share(0, 1)
    with pytest.raises(EnvironmentFault, match=r"of 2 elements from 3 to 7 has holes"):
        read_share("array", slurm(3, 3, 7, 1, 2))
    with pytest.raises(EnvironmentFault, match=r"SLURM_ARRAY_TASK_ID is not set; it is for jobs of `sbatch --array"):
        read_share("array", {"SLURM_JOB_ID": "7"})

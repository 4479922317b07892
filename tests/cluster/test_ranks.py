"""Ranks from each launcher's environment, and environments that contradict themselves."""

from __future__ import annotations

import pytest

from pipeline.cluster.ranks import FIRST_PORT, PORTS, Ranks, first_host, read_ranks
from pipeline.errors import EnvironmentFault

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_NODELIST": "gpu[007-009,12]",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


def test_no_launcher() -> None:
    assert read_ranks({"PATH": "/bin"}) is None


def test_torchrun() -> None:
    assert read_ranks(TORCHRUN) == Ranks(3, 4, 1, 2, "torchrun", "node1", 29400)


def test_deepspeed_launcher() -> None:
    environment = without(without(TORCHRUN, "TORCHELASTIC_RUN_ID"), "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "2"}
    assert read_ranks(environment) == Ranks(3, 4, 1, 2, "deepspeed", "node1", 29400)


def test_our_own_launch() -> None:
    found = read_ranks(TORCHRUN | {"HEADWATER_LAUNCHER": "local"})
    assert found is not None
    assert (found.launcher, found.first) == ("local", False)


def test_srun() -> None:
    found = read_ranks(SRUN)
    assert found == Ranks(2, 3, 0, 1, "srun", "gpu007", FIRST_PORT + 170 % PORTS)


def test_srun_keeps_an_exported_address() -> None:
    found = read_ranks(SRUN | {"MASTER_ADDR": "login", "MASTER_PORT": "1234"})
    assert found is not None
    assert (found.address, found.port) == ("login", 1234)


def test_a_batch_script_is_no_step() -> None:
    assert read_ranks(without(SRUN, "SLURM_STEP_ID")) is None


def test_ranks_of_torchrun_inside_a_slurm_step_win() -> None:
    found = read_ranks(SRUN | TORCHRUN)
    assert found is not None
    assert found.launcher == "torchrun"


def test_mpirun() -> None:
    found = read_ranks(MPIRUN)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.launcher) == (1, 2, 1, "mpirun")
    assert found.port is not None


def test_mpirun_on_several_hosts_needs_an_address() -> None:
    with pytest.raises(EnvironmentFault, match="-x MASTER_ADDR"):
        read_ranks(MPIRUN | {"OMPI_COMM_WORLD_SIZE": "4"})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_set_torchrun_is_refused(name: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"but {name} is not"):
        read_ranks(without(TORCHRUN, name))


def test_half_set_mpirun_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="OMPI_COMM_WORLD_SIZE is not"):
        read_ranks(without(MPIRUN, "OMPI_COMM_WORLD_SIZE"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "4", "rank 4 of 4"),
        ("RANK", "one", "RANK='one' is not a number"),
        ("LOCAL_RANK", "2", "local rank 2 of 2"),
        ("LOCAL_WORLD_SIZE", "9", "local rank 1 of 9"),
        ("MASTER_PORT", "99999", "MASTER_PORT=99999 is not a port"),
    ],
)
def test_contradictions_say_what_was_found(name: str, value: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said):
        read_ranks(TORCHRUN | {name: value})


def test_srun_with_a_node_that_has_no_tasks_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="SLURM_NODEID=5"):
        read_ranks(SRUN | {"SLURM_NODEID": "5"})
    with pytest.raises(EnvironmentFault, match="not of the form"):
        read_ranks(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "two"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,12],cpu1", "gpu007"),
        ("rack[1-2]n", "rack1n"),
        ("a[3,5-7].cluster.org", "a3.cluster.org"),
    ],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first

"""Ranks from each launcher's environment, and environments that contradict themselves."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.cluster.ranks import FIRST_PORT, MPICH_PORT, PORTS, Ranks, read_ranks, unused_tasks
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


def test_tasks_that_nobody_started() -> None:
    job = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"}
    assert unused_tasks(job) == 4
    assert unused_tasks(without(job, "SLURM_NTASKS")) == 2
    assert unused_tasks({**job, "SLURM_STEP_ID": "0"}) == 0
    assert unused_tasks({**job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}) == 0
    assert unused_tasks(without(job, "SLURM_JOB_ID")) == 0


def launcher_of(environment: dict[str, str]) -> str:
    found = read_ranks(environment)
    assert found is not None
    return found.launcher


AGENTS = TORCHRUN | {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}
ONE_TASK = SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
BY_HAND = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29400"}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        (SRUN | AGENTS, "torchrun"),  # one torchrun a node, which found each other
        (ONE_TASK | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, "torchrun"),  # one task, which starts all ranks
        (SRUN | BY_HAND, "deepspeed"),  # a script that exports RANK=$SLURM_PROCID
        (SRUN | {"PMI_RANK": "2", "PMI_SIZE": "3"}, "srun"),  # srun --mpi=pmi2
        (SRUN | MPICH, "mpiexec"),  # hydra starts a helper a node through srun
        (
            SRUN | MPIRUN | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            "mpirun",
        ),  # so does Open MPI
        (SRUN | {"RANK": "", "WORLD_SIZE": ""}, "srun"),  # exported empty is not set
    ],
)
def test_a_launcher_may_start_another_one(environment: dict[str, str], launcher: str) -> None:
    assert launcher_of(environment) == launcher


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (SRUN | BY_HAND | {"RANK": "0", "WORLD_SIZE": "1"}, "rank 0 of 1, but srun, around it, rank 2 of 3"),
        (SRUN | BY_HAND | {"RANK": "0"}, "rank 0 of 3, but srun, around it, rank 2 of 3.*unset RANK"),
        (SRUN | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, "each of the 3 tasks has a torchrun of its own"),
        (SRUN | MPIRUN, "mpirun says rank 1 of 2, but srun, around it, rank 2 of 3"),
        (MPIRUN | BY_HAND | {"RANK": "0", "WORLD_SIZE": "1"}, "but mpirun, around it, rank 1 of 2"),
        (SRUN | {"SLURM_NODEID": "one"}, "SLURM_NODEID='one' is not a number"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x999999999)"}, "not of the form"),
        (without(MPICH, "MPI_LOCALRANKID"), "MPI_LOCALRANKID is not"),
        (MPICH | {"PMI_SIZE": "8"}, "-genv MASTER_ADDR"),
    ],
)
def test_launchers_that_contradict_each_other_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said):
        read_ranks(environment)


def test_mpich_and_intel() -> None:
    assert read_ranks(MPICH) == Ranks(1, 4, 1, 4, "mpiexec", "127.0.0.1", MPICH_PORT)
    cray = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4"}
    found = read_ranks(cray | {"MASTER_ADDR": "n1", "MASTER_PORT": "29501"})
    assert found == Ranks(5, 8, 1, 4, "mpiexec", "n1", 29501)


KNOWN = sorted({*SRUN, *AGENTS, *MPIRUN, *MPICH, "SLURM_STEP_NUM_TASKS", "PMIX_NAMESPACE", "LOCAL_SIZE"})
VALUES = st.one_of(
    st.integers(-1, 9).map(str),
    st.sampled_from(
        ["", "2(x3),1", "node[1-2]", "node1", "9" * 5000, "٣", "²", "a" * 60 + "]", "[1-999999999]", "x,", "[2-1]"]
    ),
    st.text(max_size=8),
)


@example({"LOCAL_RANK": "0", "PMI_SIZE": "9" * 5000})
@example({"RANK": "9" * 5000, "LOCAL_RANK": "9" * 5000})
@given(st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=len(KNOWN)))
def test_any_environment_gives_ranks_or_one_clear_line(environment: dict[str, str]) -> None:
    try:
        found = read_ranks(environment)
    except EnvironmentFault as error:
        assert len(str(error)) < 600
    else:
        assert found is None or 0 <= found.local_rank < found.local_world_size <= found.world_size > found.rank >= 0


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

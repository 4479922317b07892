"""Which of how many processes this one is: read in one place, from whatever started it.

Known launchers: torchrun and the deepspeed launcher (RANK, WORLD_SIZE, LOCAL_RANK), srun (SLURM_PROCID…), mpirun
(OMPI_COMM_WORLD_*), and our own local launch (cluster/launch.py, same variables as torchrun).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import EnvironmentFault

LAUNCHER = "HEADWATER_LAUNCHER"  # set by our own launch: "local"
FIRST_PORT, PORTS = 20_000, 10_000  # a Slurm job's port follows from its id, below the ephemeral ports of Linux


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Ranks:
    """This process's place. rank: 0 … world_size-1; local_rank: 0 … local_world_size-1 on this host.

    launcher: `alone`, `local`, `torchrun`, `deepspeed`, `srun`, `mpirun`; address and port: where rank 0 listens.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str
    address: str = "127.0.0.1"
    port: int | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and talks."""
        return self.rank == 0


ALONE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, launcher="alone")


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """The ranks that a launcher gave this process; None when there is no launcher.

    Raises: EnvironmentFault when the variables are half-set or contradict each other.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _from_torch(environment)
    if "OMPI_COMM_WORLD_RANK" in environment or "OMPI_COMM_WORLD_SIZE" in environment:
        return _from_mpi(environment)
    # sbatch's own script has SLURM_PROCID too; only inside a step (srun) is there a SLURM_STEP_ID with tasks.
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    return None


def _from_torch(environment: Mapping[str, str]) -> Ranks:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    launcher = environment.get(LAUNCHER) or ("torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed")
    rank, world, local = (_number(environment, name, names) for name in names)
    # The deepspeed launcher gives LOCAL_SIZE; without either, all ranks of a small world are on this host.
    size_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environment), None)
    local_world = _number(environment, size_name, names) if size_name else world
    address, port = _rendezvous(environment, world)
    return _checked(Ranks(rank, world, local, local_world, launcher, address, port))


def _from_mpi(environment: Mapping[str, str]) -> Ranks:
    names = tuple(f"OMPI_COMM_WORLD_{part}" for part in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    rank, world, local, local_world = (_number(environment, name, names) for name in names)
    if world > local_world and "MASTER_ADDR" not in environment:
        raise EnvironmentFault(
            f"mpirun started {world} ranks on several hosts but MASTER_ADDR is not set; "
            "add `-x MASTER_ADDR=<first host> -x MASTER_PORT=29500` to mpirun"
        )
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    port = _port(environment) if "MASTER_PORT" in environment else _job_port(environment.get("PMIX_NAMESPACE", "0"))
    return _checked(Ranks(rank, world, local, local_world, "mpirun", address, port))


def _from_slurm(environment: Mapping[str, str]) -> Ranks:
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    names = ("SLURM_PROCID", size, "SLURM_LOCALID")
    rank, world, local = (_number(environment, name, names) for name in names)
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or str(world)
    counts = _tasks_per_node(per_node)
    node = int(environment.get("SLURM_NODEID", "0"))
    if node >= len(counts):
        raise EnvironmentFault(f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE={per_node} has {len(counts)} nodes")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    job = f"{environment.get('SLURM_JOB_ID', '0')}{environment['SLURM_STEP_ID']}"
    port = _port(environment) if "MASTER_PORT" in environment else _job_port(job)
    return _checked(Ranks(rank, world, local, counts[node], "srun", address, port))


def first_host(hosts: str) -> str:
    """The first host of a Slurm node list: `gpu[007-009,12],cpu1` gives `gpu007`.

    Raises: EnvironmentFault for a list of another form.
    """
    found = re.match(r"([^\[\],\s]+)(?:\[(\d+)[^\]]*\])?([^\[\],\s]*)", hosts)
    if not found:
        raise EnvironmentFault(f"SLURM_JOB_NODELIST={hosts!r} names no host; export MASTER_ADDR=<first host>")
    return found[1] + (found[2] or "") + found[3]


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            raise EnvironmentFault(f"SLURM_TASKS_PER_NODE={text!r} is not of the form 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _rendezvous(environment: Mapping[str, str], world: int) -> tuple[str, int | None]:
    if world == 1 and "MASTER_PORT" not in environment:
        return "127.0.0.1", None
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            raise EnvironmentFault(f"RANK and WORLD_SIZE={world} are set but {name} is not; {_REMEDY}")
    return environment["MASTER_ADDR"], _port(environment)


_REMEDY = "start with torchrun, deepspeed, srun or mpirun, which set all of them, or unset them all to start ranks here"


def _number(environment: Mapping[str, str], name: str, names: tuple[str, ...]) -> int:
    value = environment.get(name)
    if value is None:
        found = ", ".join(f"{other}={environment[other]}" for other in names if other in environment)
        raise EnvironmentFault(f"{found or 'a launcher'} is set but {name} is not; {_REMEDY}")
    if not value.isdecimal():
        raise EnvironmentFault(f"{name}={value!r} is not a number; {_REMEDY}")
    return int(value)


def _port(environment: Mapping[str, str]) -> int:
    port = _number(environment, "MASTER_PORT", ("MASTER_ADDR", "MASTER_PORT"))
    if not 0 < port < 65_536:
        raise EnvironmentFault(f"MASTER_PORT={port} is not a port (1 to 65535)")
    return port


def _job_port(job: str) -> int:
    """The same port on every rank of a job step, another one for most other jobs on the host."""
    digits = re.sub(r"\D", "", job) or "0"
    return FIRST_PORT + int(digits) % PORTS


def _checked(ranks: Ranks) -> Ranks:
    found = f"rank {ranks.rank} of {ranks.world_size}, local rank {ranks.local_rank} of {ranks.local_world_size}"
    fits = 0 <= ranks.rank < ranks.world_size and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size
    if not fits:
        raise EnvironmentFault(f"the {ranks.launcher} environment contradicts itself: {found}; {_REMEDY}")
    return ranks

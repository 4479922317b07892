"""Which of how many processes this one is: read in one place, from whatever started it.

Known launchers, the innermost first: torchrun, the deepspeed launcher and our own local launch (cluster/launch.py) give
RANK, WORLD_SIZE, LOCAL_RANK; Open MPI's mpirun OMPI_COMM_WORLD_*; MPICH's and Intel's PMI_RANK, PMI_SIZE,
MPI_LOCALRANKID; srun SLURM_PROCID and others. One may start another (srun one torchrun a node), so the innermost wins;
where the two cannot both be true (`_agree`) the environment is refused, with what was found.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.node_list import first_host, tasks_per_node
from pipeline.errors import EnvironmentFault

LAUNCHER = "HEADWATER_LAUNCHER"  # set by our own launch: "local"
FIRST_PORT, PORTS = 20_000, 10_000  # a Slurm job's port follows from its id, below the ephemeral ports of Linux
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, the same under Windows' Linux, AMD's
MPICH_PORT = 29_500  # torch's default: mpiexec tells its ranks no number of the job


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_ranks() -> int:
    """Processes on this machine when no launcher is used: one a GPU, or one a core (at most 2) without GPUs."""
    gpus = 0
    if sys.platform != "linux" or any(Path(path).exists() for path in GPU_DRIVERS):
        from pipeline.cluster.device import gpu_count  # torch takes seconds to load: not where no GPU can be

        gpus = gpu_count()
    return gpus or min(2, cores())


@dataclass(frozen=True)
class Ranks:
    """This process's place. rank: 0 … world_size-1; local_rank: 0 … local_world_size-1 on this host.

    launcher: `alone`, `local`, `torchrun`, `deepspeed`, `mpirun`, `mpiexec`, `srun`; address and port: where rank 0
    listens.
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
    environment = {name: value for name, value in environment.items() if value}  # exported empty: not set
    outer = _outer(environment)
    if "RANK" in environment or "WORLD_SIZE" in environment:
        found = _from_torch(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment or "OMPI_COMM_WORLD_SIZE" in environment:
        found = _from_open_mpi(environment)
    elif ("PMI_RANK" in environment or "PMI_SIZE" in environment) and not _pmi_of_srun(environment):
        found = _from_mpich(environment)
    elif _in_step(environment):
        found = _from_slurm(environment)
    else:
        return None
    for launcher, rank, size in outer:
        _agree(found, launcher, rank, size, environment)
    return found


def unused_tasks(environment: Mapping[str, str] = os.environ) -> int:
    """Tasks that a Slurm job has room for while nobody started them: its script runs on the first node, without srun.

    0 in a step, outside of Slurm, and where one task is all there is.
    """
    if "SLURM_JOB_ID" not in environment or _in_step(environment):
        return 0
    counts = (environment.get(name, "") for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"))
    most = max(int(count) if count.isdecimal() else 0 for count in counts)
    return most if most > 1 else 0


def _in_step(environment: Mapping[str, str]) -> bool:
    # sbatch's own script has SLURM_PROCID too; only inside a step (srun) is there a SLURM_STEP_ID with tasks.
    return "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment


def _pmi_of_srun(environment: Mapping[str, str]) -> bool:
    """srun speaks PMI with its tasks too; then both say the same."""
    names = (("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", _step_size(environment)))
    return _in_step(environment) and all(environment.get(pmi) == environment.get(slurm) for pmi, slurm in names)


def _step_size(environment: Mapping[str, str]) -> str:
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"


def _outer(environment: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """(launcher, rank, size) of launchers that may have started another one, where they say both."""
    pairs = {"mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), "mpiexec": ("PMI_RANK", "PMI_SIZE")}
    if _in_step(environment):
        pairs["srun"] = ("SLURM_PROCID", _step_size(environment))
    return [
        (launcher, _number(environment, names[0], names), _number(environment, names[1], names))
        for launcher, names in pairs.items()
        if all(name in environment for name in names)
    ]


def _agree(inner: Ranks, launcher: str, rank: int, size: int, environment: Mapping[str, str]) -> None:
    """Refuse a world inside another launcher's world that cannot be meant.

    Several tasks with one torchrun each must have formed one group of agents; a world smaller than the one around it
    means that each task is a world of its own, or that RANK was inherited; with two worlds of one size, started by hand
    (no mpirun, whose helpers on other nodes are srun's tasks), the ranks must be the same.
    Raises: EnvironmentFault.
    """
    if inner.launcher == launcher or size == 1:
        return
    place = f"rank {inner.rank} of {inner.world_size}"
    found = f"{inner.launcher} says {place}, but {launcher}, around it, rank {rank} of {size}"
    if inner.launcher == "torchrun" and "GROUP_WORLD_SIZE" in environment:
        if environment["GROUP_WORLD_SIZE"] == "1":
            raise EnvironmentFault(
                f"{found}: each of the {size} tasks has a torchrun of its own (GROUP_WORLD_SIZE=1); give torchrun "
                f"--nnodes={size} and --rdzv-endpoint=<first host>:29500, or start one task"
            )
        return
    helpers = inner.launcher in ("mpirun", "mpiexec")
    if inner.world_size < size or (inner.world_size == size and inner.rank != rank and not helpers):
        unset = "unset RANK WORLD_SIZE LOCAL_RANK" if not helpers else "start one of the two only"
        raise EnvironmentFault(f"{found}; if {launcher} is meant to start the ranks, {unset}")


def _from_torch(environment: Mapping[str, str]) -> Ranks:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    launcher = environment.get(LAUNCHER) or ("torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed")
    rank, world, local = (_number(environment, name, names) for name in names)
    # The deepspeed launcher gives LOCAL_SIZE; without either, all ranks of a small world are on this host.
    size_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environment), None)
    local_world = _number(environment, size_name, names) if size_name else world
    address, port = _rendezvous(environment, world)
    return _checked(Ranks(rank, world, local, local_world, launcher, address, port))


def _from_open_mpi(environment: Mapping[str, str]) -> Ranks:
    names = tuple(f"OMPI_COMM_WORLD_{part}" for part in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    add = "`-x MASTER_ADDR=<first host> -x MASTER_PORT=29500`"
    return _from_mpi(environment, names, "mpirun", add, _job_port(environment.get("PMIX_NAMESPACE", "0")))


def _from_mpich(environment: Mapping[str, str]) -> Ranks:
    """MPICH's hydra and Intel MPI; on Cray machines the local names begin with PMI_LOCAL."""
    cray = "PMI_LOCAL_RANK" in environment
    local_names = ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE") if cray else ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    add = "`-genv MASTER_ADDR <first host> -genv MASTER_PORT 29500`"
    return _from_mpi(environment, ("PMI_RANK", "PMI_SIZE", *local_names), "mpiexec", add, MPICH_PORT)


def _from_mpi(environment: Mapping[str, str], names: tuple[str, ...], launcher: str, add: str, port: int) -> Ranks:
    """names: of the variables for rank, world size, local rank and local world size. add: the launcher's option that
    says where ranks on several hosts meet; port: where those on one host do, unless MASTER_PORT says."""
    rank, world, local, local_world = (_number(environment, name, names) for name in names)
    if world > local_world and "MASTER_ADDR" not in environment:
        raise EnvironmentFault(
            f"{launcher} started {world} ranks on several hosts but MASTER_ADDR is not set; add {add} to {launcher}"
        )
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    port = _port(environment) if "MASTER_PORT" in environment else port
    return _checked(Ranks(rank, world, local, local_world, launcher, address, port))


def _from_slurm(environment: Mapping[str, str]) -> Ranks:
    names = ("SLURM_PROCID", _step_size(environment), "SLURM_LOCALID")
    rank, world, local = (_number(environment, name, names) for name in names)
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or str(world)
    counts = tasks_per_node(per_node)
    node = _number(environment, "SLURM_NODEID", names) if "SLURM_NODEID" in environment else 0
    if node >= len(counts):
        raise EnvironmentFault(
            f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE={per_node[:100]} has {len(counts)} nodes"
        )
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    job = f"{environment.get('SLURM_JOB_ID', '0')}{environment['SLURM_STEP_ID']}"
    port = _port(environment) if "MASTER_PORT" in environment else _job_port(job)
    return _checked(Ranks(rank, world, local, counts[node], "srun", address, port))


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
        found = ", ".join(f"{other}={environment[other][:40]}" for other in names if other in environment)
        raise EnvironmentFault(f"{found or 'a launcher'} is set but {name} is not; {_REMEDY}")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise EnvironmentFault(f"{name}={value[:100]!r} is not a number; {_REMEDY}")
    return int(value)


def _port(environment: Mapping[str, str]) -> int:
    port = _number(environment, "MASTER_PORT", ("MASTER_ADDR", "MASTER_PORT"))
    if not 0 < port < 65_536:
        raise EnvironmentFault(f"MASTER_PORT={port} is not a port (1 to 65535)")
    return port


def _job_port(job: str) -> int:
    """The same port on every rank of a job step, another one for most other jobs on the host."""
    digits = re.sub(r"\D", "", job) or "0"
    return FIRST_PORT + int(digits[-12:]) % PORTS


def _checked(ranks: Ranks) -> Ranks:
    found = f"rank {ranks.rank} of {ranks.world_size}, local rank {ranks.local_rank} of {ranks.local_world_size}"
    fits = 0 <= ranks.rank < ranks.world_size and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size
    if not fits:
        raise EnvironmentFault(f"the {ranks.launcher} environment contradicts itself: {found}; {_REMEDY}")
    return ranks

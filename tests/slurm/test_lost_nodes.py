"""Nodes that are cut off, or not as they should be: what runs there does no harm, and training goes on elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virtual_cluster import (
    PATIENT,
    PAUSE,
    SCRIPTS,
    WORDS,
    Cluster,
    Prepared,
    Unbroken,
    found_rank,
    losses,
    stop_rank,
    until,
)


def test_a_rank_dies_and_a_ghost_writer_behind_a_cut_link_is_fenced_off(
    cluster: Cluster, prepared: Prepared, unbroken: Unbroken, quick_site: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    workdir, log = prepared(tmp_path / "runs" / "ghost"), tmp_path / "job.log"
    folder = workdir / "checkpoints"
    words = (*WORDS, "tracking.enabled=false")
    script = (str(SCRIPTS / "pretrain.sh"), str(tiny_recipe), f"workdir={workdir}", *words)
    job = cluster.submit(log, "--ntasks-per-node=2", *script, HEADWATER_SITE=str(quick_site))

    dead = stop_rank(cluster, folder, 1, 5)  # a rank dies: the step ends, the job goes back to the queue
    restarts = int(job.shown("Restarts"))
    dead.signal("KILL")
    until(lambda: int(job.shown("Restarts")) > restarts, "the requeue after a dead rank", PAUSE)

    # A node is cut off while its ranks are at work. Slurm believes that it is dead, and starts the job elsewhere.
    ghosts = [stop_rank(cluster, folder, 1, 20), found_rank(cluster, folder, 0)]
    ghosts[1].signal("STOP")  # it waits for the other's next step
    (lost,) = {ghost.host for ghost in ghosts}
    (other,) = {"node1", "node2"} - {lost}
    cluster.call("cut", lost)
    with ThreadPoolExecutor(1) as beside:
        unbroken_losses = beside.submit(unbroken, 2)  # while Slurm comes to believe it
        stop_rank(cluster, folder, 1, 30, host=other).signal("CONT")  # it is at work there; now the ghosts wake up
        straight = unbroken_losses.result()
    for ghost in ghosts:
        ghost.signal("CONT")
    until(lambda: not any(ghost.alive() for ghost in ghosts), "the end of the ghosts")
    assert job.end() == "COMPLETED", job.said()[-4000:]
    assert losses(folder) == straight
    assert "has taken over" in job.said()


def test_a_bad_node_is_named_and_left_out(
    cluster: Cluster, prepared: Prepared, tiny_recipe: Path, tmp_path: Path
) -> None:
    workdir = prepared(tmp_path / "runs" / "bad")
    script = (str(SCRIPTS / "pretrain.sh"), "--exclude-bad", str(tiny_recipe), f"workdir={workdir}", PATIENT)
    cluster.call("on", "node2", "mount", "-t", "tmpfs", "tmpfs", str(workdir))  # what it sees there is not ours
    try:
        job = cluster.submit(tmp_path / "job.log", "--nodes=1-2", "--mincpus=2", *script)
        job.wait_for_start(2)
        assert f"bad node: node2: {workdir} is not the folder that node1 see" in job.said()
        assert "\nexclude=node2\n" in job.said()
        assert "start 2, 1 × 1 ranks on node1" in job.said()
        assert job.shown("ExcNodeList") == "node2"
        job.cluster.call("exec", "scancel", job.identity)
        assert job.end() == "CANCELLED"
    finally:
        cluster.call("on", "node2", "umount", str(workdir))

"""One rank of a preflight in which each rank plays a node of its own, with what is planted: see test_preflight.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

planted = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
host = f"node{rank + 1}"
os.environ |= {"SLURMD_NODENAME": host, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
os.environ["SLURM_JOB_NODELIST"] = f"node[1-{os.environ['WORLD_SIZE']}]"
if host == planted.get("absent"):
    sys.exit(0)
if host == planted.get("old"):
    sys.path.insert(0, planted["packages"])  # holds an older deepspeed's metadata

from pipeline.cluster.preflight.check import preflight  # noqa: E402
from pipeline.cluster.preflight.table import lines  # noqa: E402
from pipeline.cluster.preflight.verdict import Report  # noqa: E402
from pipeline.cluster.ranks import read_ranks  # noqa: E402
from pipeline.settings.cluster import PreflightSettings  # noqa: E402


def tell(report: Report) -> None:
    Path(planted["report"]).write_text(
        json.dumps({"report": asdict(report), "lines": list(lines(report)), "bad": report.bad_nodes()})
    )


def now() -> float:
    if host == planted.get("hangs"):
        os.kill(os.getpid(), signal.SIGSTOP)  # in the middle of its answers, like a node that has frozen
    return time.time() + (30 if host == planted.get("wrong_clock") else 0)


# The imports take long, on a busy machine for some ranks much longer: preflight's patience begins when all are there.
Path(planted["folder"], f"started-{rank}").touch()
while len(list(Path(planted["folder"]).glob("started-*"))) < int(os.environ["WORLD_SIZE"]) - ("absent" in planted):
    time.sleep(0.05)
folder = Path(planted["folder"]) / ("elsewhere" if host == planted.get("elsewhere") else "run")
found = read_ranks()
assert found is not None
sys.exit(preflight(found, PreflightSettings(**planted.get("settings", {})), folder, tell, now))

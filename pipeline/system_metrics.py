"""The machine's load while a stage works, named as MLflow names it: `system/cpu_utilization_percentage` and so on."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import EnvironmentFault
from pipeline.progress import log

SAMPLE_SECONDS = 10.0
MEGABYTE = 1 << 20
QUERY_SECONDS = 5.0  # nvidia-smi hangs on a sick GPU
GPU_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"  # %, %, MiB, MiB, W


class Sampler(threading.Thread):
    """Calls `record` with the machine's load every `seconds` seconds, until stopped.

    folder: its disk is the one that is watched.
    """

    def __init__(
        self, folder: Path, record: Callable[[Mapping[str, float]], None], seconds: float = SAMPLE_SECONDS
    ) -> None:
        super().__init__(name="system metrics", daemon=True)
        self.folder, self.record, self.seconds = folder, record, seconds
        self._ended = threading.Event()

    def run(self) -> None:
        import psutil

        gpus = shutil.which("nvidia-smi")
        psutil.cpu_percent()  # measures since the call before: the first answer means nothing
        network = psutil.net_io_counters()
        while not self._ended.wait(self.seconds):
            memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.folder))
            found = {
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": memory.used / MEGABYTE,
                "system_memory_usage_percentage": memory.percent,
                "disk_usage_percentage": disk.percent,
                "disk_available_megabytes": disk.free / MEGABYTE,
            }
            if network and (now := psutil.net_io_counters()):
                found["network_receive_megabytes"] = (now.bytes_recv - network.bytes_recv) / MEGABYTE
                found["network_transmit_megabytes"] = (now.bytes_sent - network.bytes_sent) / MEGABYTE
                network = now
            if gpus:
                try:
                    found |= gpu_load(gpus)
                except (OSError, subprocess.SubprocessError, ValueError) as error:
                    log.debug("system metrics: nvidia-smi gives nothing, no more is asked of it: %s", error)
                    gpus = None
            try:
                self.record({f"system/{name}": round(value, 3) for name, value in found.items()})
            except EnvironmentFault as fault:  # a full disk: the stage itself meets it, and tells
                log.debug("system metrics: %s", fault)
                return

    def stop(self) -> None:
        """End the thread; a sample that is being taken is awaited."""
        self._ended.set()
        self.join()


def gpu_load(program: str) -> dict[str, float]:
    """What `nvidia-smi` says of each GPU. Raises OSError, SubprocessError or ValueError when it says nothing of use."""
    answer = subprocess.run(
        [program, f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=QUERY_SECONDS,
        check=True,
    ).stdout
    found: dict[str, float] = {}
    for line in answer.splitlines():
        index, load, used, total, power = (word.strip() for word in line.split(","))
        found[f"gpu_{index}_utilization_percentage"] = float(load)
        found[f"gpu_{index}_memory_usage_megabytes"] = float(used)
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * float(used) / float(total)
        if power.replace(".", "").isdigit():  # some devices do not tell
            found[f"gpu_{index}_power_usage_watts"] = float(power)
    return found

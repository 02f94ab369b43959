"""What a training uses while it runs: wall clock, CPU time and memory."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch


@dataclass(kw_only=True)
class Clock:
    """Seconds that a training has used, earlier sessions included: wall clock, and CPU of all its processes.

    With several `processes`, each counts its own time and assumes that the others use as much.
    """

    earlier_wall: float = 0.0
    earlier_cpu: float = 0.0
    processes: int = 1
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)
    _workers: list[psutil.Process] = field(default_factory=list)

    def watch_workers(self) -> None:
        """Count the present child processes, including the time they have used so far."""
        self._workers = psutil.Process().children(recursive=True)

    @property
    def wall(self) -> float:
        """Seconds of wall clock."""
        return self.earlier_wall + time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """CPU-seconds of this process, all its threads, and the workers; as much for each of the other processes."""
        own = time.process_time() - self._cpu + sum(map(_cpu_seconds, self._workers))
        return self.earlier_cpu + self.processes * own


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: the GPU's where it is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _peak_resident_bytes() / 2**30


def _peak_resident_bytes() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss remembers the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended
        return 0.0
    return times.user + times.system

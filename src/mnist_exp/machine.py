"""What this machine has for this process: cores, memory, and how busy it is."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of both versions
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
LOOKS, PAUSE = 5, 0.01  # at what is running; seconds between them


def count_cores() -> int:
    """Cores that this process may use: by its affinity, its container's quota, Slurm's share."""
    on_linux = hasattr(os, "sched_getaffinity")
    counts = [len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1]
    for files in QUOTAS:
        with suppress(OSError, ValueError):  # there is none, or it is "max" or -1
            quota, period = " ".join((CGROUPS / file).read_text() for file in files).split()
            counts += [-(-int(quota) // int(period))] if int(quota) > 0 else []
    with suppress(KeyError, ValueError):
        counts.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(counts))


def find_memory() -> int:
    """Bytes of memory that are free, or can be made so, within the limit of the container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux, which is the only one to say what is free
        free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        with suppress(OSError, ValueError):
            free.append(int((CGROUPS / file).read_text()))
    return min(free)


def count_idle_cores() -> int:
    """Cores of the machine on which no other process runs; all of them where that is unknown.

    Whatever runs or waits for a core at each of several looks counts, except this process and
    those that it has started.
    """
    busy = []
    with suppress(OSError):
        for _ in range(LOOKS):
            running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            ours = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            states = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] for pid in ours]
            busy.append(running - 1 - states.count("R"))
            time.sleep(PAUSE)
    return (os.cpu_count() or 1) - max(0, min(busy, default=0))

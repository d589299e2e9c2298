"""What this machine has for this process: cores, memory, and how busy it is."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of both versions
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
LOOKS, PAUSE = 5, 0.01  # at what is running; seconds between them
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


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


def keep_freed_memory(largest_block: int, at_most: int) -> None:
    """Let the C library keep freed memory for later use, instead of giving it back at once.

    Large images or activations would otherwise be given back and gotten again, page by page, for
    each picture or training step.

    largest_block: bytes, up to 32 MB; larger blocks are always given back. at_most: bytes that each
    thread keeps.
    """
    with suppress(AttributeError, OSError):  # only glibc has it
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_MMAP_THRESHOLD, largest_block)
        set_option(M_TRIM_THRESHOLD, at_most)

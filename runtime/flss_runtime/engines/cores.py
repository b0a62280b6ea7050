"""How many threads are worth having: the physical cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores() -> int:
    """Count the physical cores this process may use, at least 1.

    Hyperthreads of one core share its arithmetic units, and more threads than that cost time. A container's CPU quota
    counts too: threads above it are stopped for the rest of each scheduling period.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in usable:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:  # no such file in some containers and on other systems
            siblings.add(str(cpu))
    return max(1, min(len(siblings), _quota()))


def _quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no control groups, or no quota ("max")
        return os.cpu_count() or 1

"""Counters of the machine, read without extra packages; one that a platform does not have is None, never an error."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"


def read_text(path: Path) -> str | None:
    """Return the stripped text of a small file of the kernel, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def _sysctl(name: str) -> str | None:
    """Ask macOS for one value; None on every other system."""
    if platform.system() != "Darwin":
        return None
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def cpu_model(root: Path = ROOT) -> str | None:
    """Return the processor's own name; on an ARM board the board's name, as such processors carry none."""
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return (
        read_text(root / "proc/device-tree/model")
        or _sysctl("machdep.cpu.brand_string")
        or platform.processor()
        or None
    )


def logical_cores() -> int:
    """Return how many logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_cores(root: Path = ROOT) -> int | None:
    """Return the number of distinct cores of the machine, or None where the kernel does not tell."""
    siblings = {
        text
        for folder in root.glob(f"{_CPUS}/cpu[0-9]*")
        if (text := read_text(folder / "topology/thread_siblings_list")) is not None
    }
    if siblings:
        return len(siblings)
    counted = _sysctl("hw.physicalcpu")
    return int(counted) if counted and counted.isdigit() else None


def memory_mib(root: Path = ROOT) -> int | None:
    """Return the machine's memory in MiB."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    counted = _sysctl("hw.memsize")
    return int(counted) // 2**20 if counted and counted.isdigit() else None


def peak_rss_mib(root: Path = ROOT) -> float | None:
    """Return the largest resident memory of this process so far in MiB.

    `VmHWM` first: `getrusage` carries the parent's peak over an exec on Linux.
    """
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 1024


def rss_mib(root: Path = ROOT) -> float | None:
    """Return the resident memory of this process now in MiB; None where the kernel does not tell (Linux only)."""
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


def governors(root: Path = ROOT) -> list[str] | None:
    """Return the distinct frequency governors of all processors; None without frequency control (as in most VMs)."""
    found = {text for file in root.glob(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_governor") if (text := read_text(file))}
    return sorted(found) or None


def cpu_mhz(root: Path = ROOT) -> float | None:
    """Return the highest current clock of any processor in MHz: the one that works, when asked right after work."""
    clocks = [
        int(text) / 1000
        for file in root.glob(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")
        if (text := read_text(file)) and text.isdigit()
    ]
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines() if not clocks else ():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            clocks.append(float(value))
    return max(clocks, default=None)


def is_virtual(root: Path = ROOT) -> bool | None:
    """Tell whether the processor reports a hypervisor (x86 only)."""
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            return "hypervisor" in line.split()
    return None


def on_battery(root: Path = ROOT) -> bool | None:
    """Tell whether every mains supply is unplugged; None on a machine without a mains supply entry."""
    states = [
        read_text(folder / "online")
        for folder in root.glob("sys/class/power_supply/*")
        if read_text(folder / "type") == "Mains"
    ]
    return all(state == "0" for state in states) if states else None


def _cgroup_folders(root: Path) -> list[Path]:
    """Return the version 2 control groups of this process from its own up to the root of what it can see."""
    base = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            own = base / line[3:].lstrip("/")
            return [own, *(parent for parent in own.parents if parent == base or base in parent.parents)]
    return [base]


def cgroup_cpu_limit(root: Path = ROOT) -> float | None:
    """Return the processor quota of the container in cores, the tightest of all enclosing groups; None = unlimited."""
    limits = []
    for folder in _cgroup_folders(root):
        quota, _, period = (read_text(folder / "cpu.max") or "max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    old = root / "sys/fs/cgroup/cpu"  # version 1
    quota, period = read_text(old / "cpu.cfs_quota_us") or "", read_text(old / "cpu.cfs_period_us") or ""
    if quota.isdigit() and period.isdigit() and int(period):
        limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _quota_throttles(root: Path) -> int | None:
    """Return how often the container's quota has stopped this process so far."""
    for folder in (*_cgroup_folders(root), root / "sys/fs/cgroup/cpu"):
        for line in (read_text(folder / "cpu.stat") or "").splitlines():
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
    return None


def _thermal_throttles(root: Path) -> int | None:
    """Return how often the cores have been slowed for heat so far (x86)."""
    counts = [
        int(text)
        for file in root.glob(f"{_CPUS}/cpu[0-9]*/thermal_throttle/core_throttle_count")
        if (text := read_text(file)) and text.isdigit()
    ]
    return sum(counts) if counts else None


def load_average() -> float | None:
    """Return the mean length of the run queue over the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment; two of them make the record of what disturbed the time between."""

    wall_s: float
    own_cpu_s: float
    cpu_ticks: tuple[int, ...] | None
    quota_throttles: int | None
    thermal_throttles: int | None
    mhz: float | None

    @classmethod
    def take(cls, root: Path = ROOT) -> Snapshot:
        """Read all counters now."""
        first = (read_text(root / "proc/stat") or "").split("\n", 1)[0].split()
        ticks = tuple(int(text) for text in first[1:9]) if len(first) >= 9 and first[0] == "cpu" else None
        own = time.process_time()
        return cls(time.perf_counter(), own, ticks, _quota_throttles(root), _thermal_throttles(root), cpu_mhz(root))

    def until(self, later: Snapshot) -> dict[str, float | None]:
        """Return what happened between this snapshot and a later one of the same process.

        Returns:
            `other_cpu_share` and `steal_share` of all processor time of the machine, `own_cpu_cores`, counts of
            throttling, and the clock at both ends in MHz; None where the platform has no such counter.
        """
        wall_s = later.wall_s - self.wall_s
        own_s = later.own_cpu_s - self.own_cpu_s
        other = steal = None
        if self.cpu_ticks is not None and later.cpu_ticks is not None:
            spent = [end - start for start, end in zip(self.cpu_ticks, later.cpu_ticks, strict=True)]
            user, nice, system, _idle, _iowait, irq, softirq, stolen = spent
            total = sum(spent)
            tick_hz = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
            if total > 0:
                busy_s = (user + nice + system + irq + softirq) / tick_hz
                other, steal = max(0.0, busy_s - own_s) * tick_hz / total, stolen / total
        return {
            "wall_s": wall_s,
            "own_cpu_cores": own_s / wall_s if wall_s > 0 else None,
            "other_cpu_share": other,
            "steal_share": steal,
            "quota_throttles": _difference(self.quota_throttles, later.quota_throttles),
            "thermal_throttles": _difference(self.thermal_throttles, later.thermal_throttles),
            "mhz_start": self.mhz,
            "mhz_end": later.mhz,
        }


def _difference(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else float(end - start)

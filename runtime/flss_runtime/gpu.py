"""NVIDIA GPUs and their driver: NVML where its Python package is installed, else what the kernel's files say.

No engine is imported, and nothing is read that identifies a single device (UUID, serial number).
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flss_runtime import jetson
from flss_runtime.machine import ROOT, read_text

# Bits of nvmlDeviceGetCurrentClocksEventReasons that say: slower than it could be. Idle and a clock set by hand do not.
_SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; None where the platform does not tell, which on a Jetson is most of it.

    Attributes:
        compute_capability: such as "8.6".
        clock_mhz: now, of the multiprocessors.
        clock_locked: the clock cannot move (Jetson only: NVML does not tell).
        slowed_by: why the clock is lower than it could be; empty when nothing holds it down.
        processes: that compute on it now, this one included.
    """

    name: str
    compute_capability: str | None = None
    memory_mib: int | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    clock_locked: bool | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    slowed_by: tuple[str, ...] | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver and the newest CUDA it can run, such as "580.65.06" and "13.0"."""

    nvidia: str | None = None
    cuda: str | None = None


def find_gpus(root: Path = ROOT) -> tuple[list[Gpu], Driver]:
    """Return the GPUs of this machine and their driver; no GPU, no driver or no NVML is no error."""
    with _nvml() as nvml:
        return read_gpus(nvml, root)


def read_gpus(nvml: Any, root: Path = ROOT) -> tuple[list[Gpu], Driver]:
    """Return what NVML and the files below `root` say.

    Args:
        nvml: the initialised module `pynvml`, or None without it.
        root: the file system's root.
    """
    gpus, driver = ([], Driver()) if nvml is None else _ask_nvml(nvml)
    gpus = gpus or _from_files(root)
    clock = jetson.gpu_clock(root)
    if clock is not None and gpus:
        gpus[0] = replace(
            gpus[0], clock_mhz=clock.mhz, max_clock_mhz=clock.max_mhz, clock_locked=clock.locked
        )  # NVML knows neither on an integrated GPU
    return gpus, replace(driver, nvidia=driver.nvidia or read_text(root / "sys/module/nvidia/version"))


class FirstDevice:
    """The first GPU that NVML knows: what it has used so far, None where it does not tell."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Take the initialised module and one of its handles."""
        self._nvml, self._handle = nvml, handle

    def energy_j(self) -> float | None:
        """Return the energy since the driver was loaded, in joules."""
        millijoules = _asker(self._nvml)("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if millijoules is None else millijoules / 1000

    def used_mib(self) -> float | None:
        """Return the memory in use, by all processes: inside a container NVML does not tell them apart."""
        memory = _asker(self._nvml)("nvmlDeviceGetMemoryInfo", self._handle)
        return None if memory is None else memory.used / 2**20


@contextlib.contextmanager
def first_device() -> Iterator[FirstDevice | None]:
    """Yield the first GPU, None without one or without NVML."""
    with _nvml() as nvml:
        handle = None if nvml is None else _asker(nvml)("nvmlDeviceGetHandleByIndex", 0)
        yield None if handle is None else FirstDevice(nvml, handle)


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    # Absent package, or its own errors, which have no base that could be named without it: no driver, no permission.
    except Exception:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _asker(nvml: Any) -> Callable[..., Any]:
    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(*arguments)
        # Not supported on this device, not permitted, or unknown to this version of the package.
        except (nvml.NVMLError, AttributeError):
            return None

    return ask


def _ask_nvml(nvml: Any) -> tuple[list[Gpu], Driver]:
    ask = _asker(nvml)
    cuda = ask("nvmlSystemGetCudaDriverVersion_v2")
    driver = Driver(_text(ask("nvmlSystemGetDriverVersion")), cuda and f"{cuda // 1000}.{cuda % 1000 // 10}")
    handles = (ask("nvmlDeviceGetHandleByIndex", index) for index in range(ask("nvmlDeviceGetCount") or 0))
    return [_gpu(handle, nvml, ask) for handle in handles if handle is not None], driver


def _gpu(handle: Any, nvml: Any, ask: Callable[..., Any]) -> Gpu:
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    power_mw, limit_mw = ask("nvmlDeviceGetPowerUsage", handle), ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)  # its name in older versions
    running = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    return Gpu(
        name=_text(ask("nvmlDeviceGetName", handle)) or "NVIDIA GPU",
        compute_capability=capability and f"{capability[0]}.{capability[1]}",
        memory_mib=memory and memory.total // 2**20,
        clock_mhz=ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        max_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        temperature_c=ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        slowed_by=None if reasons is None else tuple(text for bit, text in _SLOWED.items() if reasons & bit),
        processes=None if running is None else len(running),
    )


def _from_files(root: Path) -> list[Gpu]:
    """Return the GPUs that the driver lists, or a Jetson's own."""
    names = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", read_text(file) or "", re.MULTILINE)
        names.append(found[1].strip() if found else "NVIDIA GPU")
    if not names and jetson.gpu_clock(root) is not None:
        names.append(f"integrated GPU of {read_text(root / 'proc/device-tree/model') or 'a Jetson'}")
    return [Gpu(name) for name in names]


def _text(value: Any) -> str | None:
    """Decode what older versions of the package return as bytes."""
    return value.decode() if isinstance(value, bytes) else value

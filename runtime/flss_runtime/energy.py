"""Energy of a frame, where the machine counts it: NVIDIA's counter, a Jetson's power rails, Intel's and AMD's RAPL."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flss_runtime import gpu, jetson
from flss_runtime.arms import Arm
from flss_runtime.image_pool import ImagePool
from flss_runtime.machine import ROOT
from flss_runtime.visits import palindrome, stream

_RAIL_PERIOD_S = 0.05


class EnergyCounter(Protocol):
    """Counts energy from any moment on.

    Attributes:
        name: of the counter.
        boundary: what it counts the energy of.
    """

    name: str
    boundary: str

    def joules(self) -> float:
        """Return the energy so far; only differences mean something.

        Raises:
            OSError: it cannot be read any more.
        """
        ...


class RaplCounter:
    """The processor packages' own estimate, from the kernel's files; most systems let only root read them."""

    name = "rapl"

    def __init__(self, root: Path = ROOT) -> None:
        """Find the packages.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        folders = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*"))
        self._packages = [folder for folder in folders if folder.name.count(":") == 1]
        if not self._packages:
            raise OSError("no package counts its energy")
        self._last = [self._read(folder / "energy_uj") for folder in self._packages]
        self._range = [self._read(folder / "max_energy_range_uj") for folder in self._packages]
        self._sum = 0
        self.boundary = f"{len(self._packages)} processor package(s), without memory and board"

    def joules(self) -> float:
        """Return the energy so far; to be asked once in the minutes after which a counter starts again."""
        for index, folder in enumerate(self._packages):
            now = self._read(folder / "energy_uj")
            step = now - self._last[index]
            self._sum += step if step >= 0 else step + self._range[index]
            self._last[index] = now
        return self._sum / 1e6

    @staticmethod
    def _read(file: Path) -> int:
        return int(file.read_text(encoding="ascii"))


class NvmlCounter:
    """The first NVIDIA GPU's own counter."""

    name = "nvml"
    boundary = "the first GPU's board"

    def __init__(self, device: gpu.FirstDevice) -> None:
        """Take an open device that counts."""
        self._device = device

    def joules(self) -> float:
        """Return the energy so far; the counter moves some ten times a second."""
        found = self._device.energy_j()
        if found is None:
            raise OSError("the driver does not count any more")
        return found


class RailCounter:
    """A Jetson's power monitors, read in a thread and summed up over time."""

    name = "hwmon"

    def __init__(self, root: Path = ROOT) -> None:
        """Find the rails and begin to read them.

        Raises:
            OSError: there is none.
        """
        rails = jetson.power_rails(root)
        if not rails:
            raise OSError("no power monitor")
        self.boundary = f"rails {', '.join(rails)}"
        self._root, self._sum, self._at, self._watts = root, 0.0, time.perf_counter(), sum(rails.values())
        self._lost = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="power-rails", daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Return the energy so far."""
        self._add()
        if self._lost:
            raise OSError("the power monitor is gone")
        return self._sum

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(_RAIL_PERIOD_S):
            self._add()

    def _add(self) -> None:
        with self._lock:
            rails = jetson.power_rails(self._root) or {}
            self._lost |= not rails
            watts, now = sum(rails.values()), time.perf_counter()
            self._sum += (self._watts + watts) / 2 * (now - self._at)  # trapezium
            self._watts, self._at = watts, now


@contextlib.contextmanager
def energy_counters(root: Path = ROOT) -> Iterator[list[EnergyCounter]]:
    """Yield the counters that can be read here; none is no error."""
    counters: list[EnergyCounter] = []
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError, ValueError):
            counters.append(RaplCounter(root))
        with contextlib.suppress(OSError):
            rails = RailCounter(root)
            opened.callback(rails.close)
            counters.append(rails)
        device = opened.enter_context(gpu.first_device())
        if device is not None and device.energy_j() is not None:
            counters.append(NvmlCounter(device))
        yield counters


def measure_energy(
    arms: Sequence[Arm],
    pool: ImagePool,
    order: Sequence[int],
    seconds: float,
    counters: Sequence[EnergyCounter],
) -> list[dict[str, Any]]:
    """Let the machine rest, then run the arms in one palindrome.

    Args:
        arms: what to measure.
        pool: host images.
        order: of the images.
        seconds: of the rest and of each of the two visits to an arm.
        counters: all are read over the same frames.

    Returns:
        One row a counter: `counter`, `boundary`, `idle_w`, and `arms`: `arm`, `frames`, `seconds`,
        `joules_per_frame` (the idle power included), `watts`, `p50_ms` of these same frames. A counter that could not
        be read every time has no row.
    """
    if not counters:
        return []
    before = _read(counters)
    began = time.perf_counter()
    time.sleep(seconds)
    idle = (_read(counters) - before) / (time.perf_counter() - began)
    by_name = {arm.name: arm for arm in arms}
    joules = {name: np.zeros(len(counters)) for name in by_name}
    spent, frames = dict.fromkeys(by_name, 0.0), {name: list[int]() for name in by_name}
    for name in palindrome(list(by_name), 0):
        before, began = _read(counters), time.perf_counter()
        frames[name] += stream(by_name[name], pool, order, 0, seconds)
        spent[name] += time.perf_counter() - began
        joules[name] += _read(counters) - before
    return [
        {
            "counter": counter.name,
            "boundary": counter.boundary,
            "idle_w": float(idle[index]),
            "arms": [
                {
                    "arm": name,
                    "frames": len(frames[name]),
                    "seconds": spent[name],
                    "joules_per_frame": float(joules[name][index]) / len(frames[name]),
                    "watts": float(joules[name][index]) / spent[name],
                    "p50_ms": float(np.median(frames[name])) / 1e6,
                }
                for name in by_name
            ],
        }
        for index, counter in enumerate(counters)
        if np.isfinite([idle[index], *(spent_there[index] for spent_there in joules.values())]).all()
    ]


def _read(counters: Sequence[EnergyCounter]) -> Any:
    """Return the joules of each counter so far, NaN of one that fails: every difference from it is NaN as well."""

    def joules(counter: EnergyCounter) -> float:
        try:
            return counter.joules()
        except (OSError, ValueError):
            return float("nan")

    return np.array([joules(counter) for counter in counters])

"""What a Jetson says about itself in its files: release, power mode, GPU clock. None on every other machine.

The tools that print the same (`nvpmodel -q`, `jetson_clocks --show`) want root; these files do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flss_runtime.machine import ROOT, read_text

_GPU_FOLDERS = re.compile(r"gpu|gv11b|ga10b|gb10b")  # of JetPack 6 and 7, Xavier, JetPack 5, Thor


@dataclass(frozen=True, slots=True)
class GpuClock:
    """The integrated GPU's frequency control, in MHz.

    Attributes:
        locked: lowest and highest allowed clock are the same, as after `jetson_clocks`.
    """

    governor: str | None
    mhz: float
    max_mhz: float
    locked: bool


def release(root: Path = ROOT) -> str | None:
    """Return the release of Jetson Linux, such as "36.4.3" (JetPack 6 is 36, JetPack 7 is 38 and 39)."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    return ".".join(found.groups()) if found else None


def power_mode(root: Path = ROOT) -> str | None:
    """Return the name of the active power mode, such as "MAXN" or "15W"; "mode 2" where its name is not to be found.

    `nvpmodel` writes the number of the mode into a status file and finds its limits in its configuration. Numbers mean
    something else on every board, and the fastest mode has neither the lowest nor the highest one.
    """
    text = read_text(root / "etc/nvpmodel.conf") or ""
    active = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    active = active or re.search(r"^\s*<\s*PM_CONFIG\s+DEFAULT=(\d+)", text, re.MULTILINE)
    if active is None:
        return None
    number = int(active[1])
    for found in re.finditer(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, re.MULTILINE):
        if int(found[1]) == number:
            return found[2]
    return f"mode {number}"


def gpu_clock(root: Path = ROOT) -> GpuClock | None:
    """Return the clock of the integrated GPU."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if not _GPU_FOLDERS.search(folder.name):
            continue
        current, low, high = (_mhz(folder / f"{name}_freq") for name in ("cur", "min", "max"))
        if current is not None and high is not None:
            return GpuClock(read_text(folder / "governor"), current, high, low == high)
    return None


def power_rails(root: Path = ROOT) -> dict[str, float] | None:
    """Return rail -> watts of the board's power monitors (INA3221); the board's input alone where it is among them."""
    rails: dict[str, float] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(folder / "name") != "ina3221":
            continue
        for label in sorted(folder.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            millivolts = read_text(folder / f"in{channel}_input")
            milliamperes = read_text(folder / f"curr{channel}_input")  # the sum of the shunts has none
            if millivolts and milliamperes and millivolts.isdigit() and milliamperes.isdigit():
                rails[read_text(label) or channel] = int(millivolts) * int(milliamperes) / 1e6
    return {"VDD_IN": rails["VDD_IN"]} if "VDD_IN" in rails else rails or None


def _mhz(file: Path) -> float | None:
    text = read_text(file)
    return int(text) / 1e6 if text and text.isdigit() else None

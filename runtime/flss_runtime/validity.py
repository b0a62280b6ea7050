"""Reasons not to trust a benchmark, from what the machine's counters say about the time it ran."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_VARIATION = 0.025  # coefficient of variation of an arm's block medians
MAX_OTHER_CPU = 0.05  # of all processor time of the machine
MAX_STEAL = 0.01
MAX_CLOCK_DROP = 0.10
MAX_CLOCK_STEP_S = 1e-6
MAX_BASELINE_SHIFT = 0.05  # an arm between the other arms against the arm by itself
MAX_SETTLING = 0.05  # first frame of a visit that counts, against the others

Flag = dict[str, str]


def flag(name: str, detail: str) -> Flag:
    """Return one reason: a stable name and a sentence with the measured value."""
    return {"name": name, "detail": detail}


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"


def machine_flags(environment: Mapping[str, Any], threads: int) -> list[Flag]:
    """Return what is wrong with the machine before anything runs on it.

    Args:
        environment: what `describe_environment` returned.
        threads: threads that the encoder uses.
    """
    flags = []
    governors = environment["cpu_governors"]
    if governors and governors != ["performance"]:
        flags.append(flag("cpu_governor", f"frequency governor is {', '.join(governors)}, not performance"))
    if environment["on_battery"]:
        flags.append(flag("battery", "the machine runs on its battery"))
    limit = environment["cpu_limit_cores"]
    if limit is not None and limit < threads:
        flags.append(flag("cpu_limit", f"the container may use {limit:g} cores, the encoder has {threads} threads"))
    if threads > environment["logical_cores"]:
        cores = environment["logical_cores"]
        flags.append(flag("oversubscribed", f"the encoder has {threads} threads on {cores} logical cores"))
    clock = time.get_clock_info("perf_counter")
    if clock.resolution > MAX_CLOCK_STEP_S or not clock.monotonic:
        flags.append(flag("clock", f"the clock steps by {clock.resolution * 1e6:g} us or is not monotonic"))
    return flags


def run_flags(counters: Sequence[Mapping[str, float | None]], load_average: float | None, cores: int) -> list[Flag]:
    """Return what disturbed the run.

    Args:
        counters: what `Snapshot.until` returned, one a process start.
        load_average: before the benchmark started.
        cores: logical cores, to judge the load average by.
    """

    def worst(key: str) -> float | None:
        return max((value for row in counters if (value := row[key]) is not None), default=None)

    flags = []
    other = worst("other_cpu_share")
    if other is not None and other > MAX_OTHER_CPU:
        flags.append(flag("other_load", f"other processes used {_share(other)} of the processors during a run"))
    # Only where nothing better exists: the average still counts what ended a minute ago.
    elif other is None and load_average is not None and load_average > 0.5 * cores:
        flags.append(flag("other_load", f"the load average was {load_average:.2f} on {cores} cores before the start"))
    if (steal := worst("steal_share")) is not None and steal > MAX_STEAL:
        flags.append(flag("steal", f"the hypervisor took {_share(steal)} of the processor time"))
    if (count := worst("quota_throttles")) is not None and count > 0:
        flags.append(flag("quota_throttled", f"the container's processor quota stopped the run {count:.0f} times"))
    if (count := worst("thermal_throttles")) is not None and count > 0:
        flags.append(flag("thermal_throttled", f"the cores were slowed for heat {count:.0f} times"))
    for row in counters:
        start, end = row["mhz_start"], row["mhz_end"]
        if start and end and abs(end / start - 1) > MAX_CLOCK_DROP:
            flags.append(flag("clock_changed", f"the processor clock went from {start:.0f} to {end:.0f} MHz"))
            break
    return flags


def result_flags(arms: Iterable[Mapping[str, Any]], warm_up: Iterable[Mapping[str, Any]]) -> list[Flag]:
    """Return what the measured times themselves say against the run.

    Args:
        arms: rows of `results["arms"]`.
        warm_up: rows of `results["warm_up"]`.
    """
    flags = []
    for arm in arms:
        if (spread := arm["variation"]) is not None and spread > MAX_VARIATION:
            flags.append(flag("variation", f"block medians of {arm['name']} vary by {_share(spread)} (limit 2.5 %)"))
        shift = arm.get("interleaved_over_alone")
        if shift is not None and abs(shift - 1) > MAX_BASELINE_SHIFT:
            text = f"{arm['name']} between the other arms takes {shift:.3f} times what it takes alone"
            flags.append(flag("baseline_shift", text))
        if (first := arm["first_counted"]) > 1 + MAX_SETTLING:
            text = f"the first counted frame of a visit to {arm['name']} takes {first:.3f} times what the others take"
            flags.append(flag("settling", text))
    unstable = sorted({row["arm"] for row in warm_up if not row["stable"]})
    if unstable:
        flags.append(flag("warm_up", f"no 3 consecutive warm-up windows within 10 %: {', '.join(unstable)}"))
    return flags


def profile_flags(profile: str) -> list[Flag]:
    """Return what the way of measuring forbids to publish."""
    if profile != "quick":
        return []
    return [flag("quick_profile", "the quick profile is for a first look; publish the standard one")]

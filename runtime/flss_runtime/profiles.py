"""How long a benchmark takes over each of its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flss_runtime.errors import UsageError

ALL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Profile:
    """How long everything takes.

    Attributes:
        processes: process starts. Several, because where a process has its arrays in memory makes the same loop half a
            percent faster or slower than its copy.
        blocks: blocks in each process.
        block_s: shortest block, seconds; rounds through all arms are added until it is reached.
        settle: fewest first frames of a visit that do not count, because they find the other arm's weights in the
            caches, and their shortest time in seconds.
        visit: fewest frames of a visit that count, and their shortest time in seconds. Few, because two frames are the
            better comparable the closer they are.
        stream_s: uninterrupted run of each arm by itself, for its percentiles, seconds.
        window_s: length of one warm-up window, seconds.
        warm_s: shortest and longest warm-up of an arm, seconds.
        warm_frames: fewest warm-up frames of an arm.
        stage_frames: frames of the instrumented run of each process start.
        batches: sizes that throughput is measured at, empty for none.
        batch_s: shortest time spent on one size in each process start, seconds.
        energy_s: each of the visits of the energy measurement, seconds; only where a counter exists.
    """

    name: str
    processes: int
    blocks: int
    block_s: float
    settle: tuple[int, float]
    visit: tuple[int, float]
    stream_s: float
    window_s: float
    warm_s: tuple[float, float]
    warm_frames: int
    stage_frames: int
    batches: tuple[int, ...]
    batch_s: float
    energy_s: float

    def frames_of_visit(self, frame_s: float) -> tuple[int, int]:
        """Return how many frames of a visit settle, and how many count.

        Args:
            frame_s: time of one frame of the baseline, seconds.
        """
        settle, count = (max(fewest, math.ceil(seconds / frame_s)) for fewest, seconds in (self.settle, self.visit))
        return settle, count

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Profile:
        """Read what `dataclasses.asdict` gave, after a way through JSON."""
        pairs = {name: tuple(fields[name]) for name in ("settle", "visit", "warm_s", "batches")}
        return cls(**{**fields, **pairs})


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 2, 8, 0.25, (1, 0.002), (1, 0.005), 0.5, 0.1, (0.3, 3.0), 25, 50, (1, 8), 0.1, 1.0),
        Profile("standard", 16, 10, 1.0, (1, 0.002), (1, 0.005), 2.0, 0.5, (1.0, 30.0), 50, 24, ALL_BATCHES, 1.0, 10.0),
    )
}


def find_profile(profile: str | Profile) -> Profile:
    """Return a profile by its name, or the one that was passed.

    Raises:
        UsageError: there is no such profile.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}", f"choose one of: {', '.join(PROFILES)}")
    return PROFILES[profile]

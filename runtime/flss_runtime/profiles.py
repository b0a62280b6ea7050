"""How long a benchmark takes over each of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flss_runtime.errors import UsageError

ALL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Profile:
    """How long everything takes.

    Attributes:
        processes: process starts.
        blocks: blocks in each process.
        block_s: shortest block, seconds; rounds through all arms are added until it is reached.
        settle_frames: first frames of a visit, which do not count: they find the other arm's weights in the caches.
        visit_frames: frames of a visit that count.
        stream_s: uninterrupted run of each arm by itself, for its percentiles, seconds.
        window_s: length of one warm-up window, seconds.
        warm_s: shortest and longest warm-up of an arm, seconds.
        warm_frames: fewest warm-up frames of an arm.
        stage_frames: frames of the instrumented run.
        batches: sizes that throughput is measured at, empty for none.
        batch_s: shortest time spent on one size in each process start, seconds.
        energy_s: each of the visits of the energy measurement, seconds; only where a counter exists.
    """

    name: str
    processes: int
    blocks: int
    block_s: float
    settle_frames: int
    visit_frames: int
    stream_s: float
    window_s: float
    warm_s: tuple[float, float]
    warm_frames: int
    stage_frames: int
    batches: tuple[int, ...]
    batch_s: float
    energy_s: float

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Profile:
        """Read what `dataclasses.asdict` gave, after a way through JSON."""
        return cls(**{**fields, "warm_s": tuple(fields["warm_s"]), "batches": tuple(fields["batches"])})


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 2, 8, 0.25, 2, 8, 0.5, 0.1, (0.3, 3.0), 25, 100, (1, 8), 0.1, 1.0),
        Profile("standard", 3, 20, 1.0, 2, 8, 5.0, 0.5, (2.0, 30.0), 50, 500, ALL_BATCHES, 1.0, 10.0),
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

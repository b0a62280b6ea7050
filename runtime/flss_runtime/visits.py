"""How arms take turns: short visits in palindromes, so that whatever the machine does meanwhile hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arms import Arm, check_answer
from flss_runtime.image_pool import ImagePool
from flss_runtime.profiles import Profile

_STABLE_WINDOWS, _STABLE_WITHIN = 3, 0.10
COLUMNS = ("arm", "block", "round", "visit", "place", "latency_ns")

Frames = dict[str, NDArray[np.int64]]


def palindrome(names: Sequence[str], turn: int) -> list[str]:
    """Return the visits of one round: D, 1, 100, 100, 1, D, with the arms rotated from round to round.

    Each arm is visited twice, symmetrically, so a linear drift hits all alike; rotation gives every arm every place.
    """
    first = turn % len(names)
    forward = [*names[first:], *names[:first]]
    return [*forward, *reversed(forward)]


def visit(arm: Arm, pool: ImagePool, order: Sequence[int], start: int, frames: int) -> list[int]:
    """Run one arm for so many frames, each after the reply to the one before.

    Returns:
        Nanoseconds of each frame.
    """
    clock, run, images, size = time.perf_counter_ns, arm.frame, pool.images, len(order)
    taken: list[int] = []
    for index in range(start, start + frames):
        image = images[order[index % size]]
        before = clock()
        run(image)
        taken.append(clock() - before)
    return taken


def stream(arm: Arm, pool: ImagePool, order: Sequence[int], start: int, seconds: float) -> list[int]:
    """Run one arm by itself for a while, three frames at least: as a robot runs it.

    Returns:
        Nanoseconds of each frame.
    """
    taken: list[int] = []
    stop = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < stop:
        taken += visit(arm, pool, order, start + len(taken), 1)
    return taken


def is_stable(window_medians: Sequence[float]) -> bool:
    """Tell whether the last three windows lie within 10 % of each other."""
    last = window_medians[-_STABLE_WINDOWS:]
    return len(last) == _STABLE_WINDOWS and max(last) <= min(last) * (1 + _STABLE_WITHIN)


def warm_up(arm: Arm, pool: ImagePool, order: Sequence[int], profile: Profile) -> dict[str, Any]:
    """Run an arm until its windows agree, by time and by count, or until the longest warm-up is over.

    Returns:
        `frames`, `seconds`, `first_frame_ms`, `windows_ms` (medians) and `stable`.
    """
    began = time.perf_counter()
    check_answer(arm.frame(pool.images[order[0]]))
    first_ms = (time.perf_counter() - began) * 1e3
    frames, windows = 1, list[float]()
    while True:
        taken = stream(arm, pool, order, frames, profile.window_s)
        frames += len(taken)
        windows.append(float(np.median(taken)) / 1e6)
        seconds = time.perf_counter() - began
        enough = seconds >= profile.warm_s[0] and frames >= profile.warm_frames
        if (stable := is_stable(windows) and enough) or (seconds >= profile.warm_s[1] and len(windows) > 2):
            break
    return {
        "arm": arm.name,
        "frames": frames,
        "seconds": seconds,
        "first_frame_ms": first_ms,
        "windows_ms": windows,
        "stable": stable,
    }


def run_blocks(
    opened: Mapping[str, Arm],
    pool: ImagePool,
    order: Sequence[int],
    profile: Profile,
    frames: int,
    say: Callable[[str], None],
) -> Frames:
    """Visit the arms round by round, each time for so many frames; a block is as many rounds as fill its time.

    Returns:
        Six arrays (n,), one entry a frame: `arm` (index in `opened`), `block`, `round` (counted through), `visit` (0 or
        1 within the round), `place` (within the visit, the settling frames included) and `latency_ns`.
    """
    parts: list[NDArray[np.int64]] = []
    turn = 0
    for block in range(profile.blocks):
        say("blocks")
        stop = time.perf_counter() + profile.block_s
        while True:
            parts += _round(opened, pool, order, frames, block, turn)
            turn += 1
            if time.perf_counter() >= stop:
                break
    return dict(zip(COLUMNS, np.concatenate(parts, axis=1), strict=True))


def _round(
    opened: Mapping[str, Arm], pool: ImagePool, order: Sequence[int], frames: int, block: int, turn: int
) -> list[NDArray[np.int64]]:
    """Visit every arm twice, with the same images for every arm."""
    names = list(opened)
    parts = []
    for position, name in enumerate(palindrome(names, turn)):
        taken = visit(opened[name], pool, order, turn * 97, frames)
        part = np.empty((len(COLUMNS), frames), np.int64)
        part[0], part[1], part[2], part[3] = names.index(name), block, turn, position >= len(names)
        part[4], part[5] = np.arange(frames), taken
        parts.append(part)
    return parts


def frame_seconds(warm: Mapping[str, Any]) -> float:
    """Return what a frame takes by the last window of a warm-up, seconds."""
    return float(warm["windows_ms"][-1]) / 1e3


def settled(frames: Frames, settle_frames: int) -> Frames:
    """Return the frames that count: without the first ones of every visit."""
    kept = frames["place"] >= settle_frames
    return {name: frames[name][kept] for name in COLUMNS}


def block_medians(frames: Frames, arm: int) -> list[float]:
    """Return one arm's value of every block in milliseconds.

    A round's value is the mean of the medians of its two visits: in a palindrome a linear drift then cancels exactly
    between the arms. A block's is the median of its rounds.

    Args:
        frames: as of `settled`.
        arm: index of the arm.
    """
    own = {name: frames[name][frames["arm"] == arm] for name in COLUMNS}
    visits = 2 * own["round"] + own["visit"]
    starts = np.flatnonzero(np.diff(visits, prepend=-1))  # a visit's frames lie side by side
    medians = np.array([np.median(part) for part in np.split(own["latency_ns"], starts[1:])]) / 1e6
    rounds, inverse = np.unique(own["round"][starts], return_inverse=True)
    values = np.bincount(inverse, medians) / np.bincount(inverse)
    block_of = np.zeros(rounds.size, np.int64)
    block_of[inverse] = own["block"][starts]
    return [float(np.median(values[block_of == block])) for block in np.unique(block_of)]


def settling(frames: Frames, arm: int, settle_frames: int) -> list[float]:
    """Return how long each frame of a visit takes, over the median of those that count: 1 once nothing settles.

    Each visit is compared with itself, so that what the machine does between visits cancels.

    Args:
        frames: of `run_blocks`, with the settling frames.
        arm: index of the arm.
        settle_frames: how many do not count.
    """
    own = frames["arm"] == arm
    latency = frames["latency_ns"][own].reshape(-1, int(frames["place"][own].max()) + 1)  # visits, frames
    typical = np.median(latency[:, settle_frames:], axis=1, keepdims=True)
    return [float(value) for value in np.median(latency / typical, axis=0)]

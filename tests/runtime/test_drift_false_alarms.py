"""The stated rate of false alarms, over a thousand clean streams with a new calibration each; and what breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from flss_runtime.drift import DriftReference
from flss_runtime.drift.detector import Detector
from flss_runtime.statistics import clopper_pearson, clopper_pearson_upper

from .drift_streams import Array, N, blocks, draw, most_evidence, population, references, scenes

STREAMS, IMAGES, RATE, DWELL = 1000, 300, 0.05, 30
CLEAN = population()
Bounds = Callable[[DriftReference, int], tuple[float, float]]


@pytest.fixture(scope="module")
def calibrations() -> tuple[Array, list[DriftReference]]:
    """The levels (streams, 4) that each stream watches, and the references."""
    found = references(np.random.default_rng(5), CLEAN, STREAMS, IMAGES)
    return np.array([reference.levels() for reference in found]), found


def bounds_at(rate: float) -> Bounds:
    """The bounds of `DriftReference`, each once: of these references they follow from the images below alone."""
    known: dict[int, tuple[float, float]] = {}

    def bounds(reference: DriftReference, level: int) -> tuple[float, float]:
        below = reference.below(level)
        if below not in known:
            known[below] = reference.bounds(level, rate)
        return known[below]

    return bounds


stated = bounds_at(RATE / 2)  # what the monitor takes


def as_if_known(reference: DriftReference, level: int) -> tuple[float, float]:
    """What a monitor would take that mistakes 300 images for all images."""
    share = reference.below(level) / reference.images
    return share, share


def alarms(calibrations: tuple[Array, list[DriftReference]], bounds: Bounds, dwell: int, parts: Any, total: int) -> int:
    """Streams with an alarm: `parts` are votes (streams, frames) one after the other, of `total` frames."""
    levels, found = calibrations
    limits = np.array([[bounds(each, level) for level in each.levels()] for each in found])  # (streams, 4, 2)
    threshold = math.ceil(total / (2 * dwell - 1)) / (RATE / 2)
    shares = chain.from_iterable(blocks(part, levels, dwell) for part in parts)
    most = most_evidence(limits[..., 0], limits[..., 1], shares)
    return int((most >= threshold).sum())


def independent(frames: int) -> list[Array]:
    return list(draw(np.random.default_rng(7), CLEAN, (frames // 500, STREAMS, 500)))


def within_rate(count: int) -> bool:
    """Whether so many of the streams say, at 99 %, that the rate is kept."""
    return clopper_pearson_upper(count, STREAMS, 0.99) <= RATE


def above_rate(count: int) -> bool:
    return clopper_pearson(count, STREAMS, 0.98)[0] > RATE


class TestIndependentFrames:
    FRAMES = 5_000

    def test_the_rate_is_kept(self, calibrations: Any) -> None:
        assert within_rate(alarms(calibrations, stated, 1, independent(self.FRAMES), self.FRAMES))

    def test_taking_the_calibration_for_the_truth_breaks_it(self, calibrations: Any) -> None:
        assert above_rate(alarms(calibrations, as_if_known, 1, independent(self.FRAMES), self.FRAMES))


@pytest.fixture(scope="module", params=[False, True], ids=["up to 30 frames", "30 frames each"])
def in_scenes(request: pytest.FixtureRequest) -> Array:
    """Streams of 300 blocks."""
    return scenes(np.random.default_rng(9), CLEAN, (STREAMS, 300 * (2 * DWELL - 1)), DWELL, request.param)


class TestScenes:
    def test_the_rate_is_kept(self, calibrations: Any, in_scenes: Array) -> None:
        assert within_rate(alarms(calibrations, stated, DWELL, [in_scenes], in_scenes.shape[1]))

    def test_taking_frames_for_independent_breaks_it(self, calibrations: Any, in_scenes: Array) -> None:
        some = in_scenes[:, :6000]
        assert above_rate(alarms(calibrations, stated, 1, [some], some.shape[1]))


def test_the_bounds_of_all_levels_hold_at_once(calibrations: Any) -> None:
    """What half of the rate is spent on; levels and threshold were chosen on the same images."""
    truth, rate = CLEAN.cumsum(), 0.1
    bounds = bounds_at(rate)
    missed = 0
    for reference in calibrations[1]:
        low, high = np.array([bounds(reference, level) for level in range(1, N + 1)]).T
        missed += bool(np.any((truth[:-1] < low) | (truth[:-1] > high)))
    assert clopper_pearson_upper(missed, STREAMS, 0.99) <= rate
    assert missed > 0, "bounds that never miss are too wide"


class TestDelay:
    """Frames from a planted change to the alarm, at the rate above and a day's horizon."""

    @pytest.mark.parametrize(
        ("changed", "dwell", "median"),
        [
            (population(0.0, 0.15), 1, 230),
            (population(-1.0, 0.1), 1, 95),
            (population(3.0, 0.6), 1, 310),
            (population(-1.0, 0.1), 30, 2500),
        ],
        ids=["less sure", "much less sure", "surer", "much less sure, scenes"],
    )
    def test_a_change_is_found(self, calibrations: Any, changed: Array, dwell: int, median: int) -> None:
        levels, found = calibrations[0][:200], calibrations[1][:200]
        rng = np.random.default_rng(11)
        before, after = 20 * (2 * dwell - 1), 4 * median
        clean = scenes(rng, CLEAN, (200, before), dwell)
        votes = np.concatenate([clean, scenes(rng, changed, (200, after), dwell)], axis=1)
        limits = np.array([[stated(each, level) for level in each.levels()] for each in found])
        threshold = math.ceil(2_592_000 / (2 * dwell - 1)) / (RATE / 2)
        delays = np.full(200, np.inf)
        detector = Detector(limits[..., 0], limits[..., 1])
        for block, shares in enumerate(blocks(votes, levels, dwell)):
            end = block * (2 * dwell - 1) + dwell
            over = detector.update(shares) >= threshold
            delays = np.where(over, np.minimum(delays, end - before), delays)
        assert (delays > 0).all(), "an alarm before the change"
        assert np.median(delays) < median and np.isfinite(delays).mean() > 0.98

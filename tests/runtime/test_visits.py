"""How arms take turns, and what is made of the frames of a visit."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from flss_runtime.profiles import PROFILES
from flss_runtime.stages import StageClock
from flss_runtime.visits import COLUMNS, block_medians, is_stable, palindrome, settled, settling


def test_blocks_are_palindromes_that_give_every_arm_every_place() -> None:
    names = ["D", "1", "100"]
    assert palindrome(names, 0) == ["D", "1", "100", "100", "1", "D"]
    blocks = [palindrome(names, block) for block in range(3)]
    assert all(block == block[::-1] for block in blocks)
    assert all({block[place] for block in blocks} == set(names) for place in range(6))


def drifting(settle: list[int], rounds: int = 1) -> dict[str, Any]:
    """Frames of three equal arms on a machine that slows down all the time, with slow first frames of each visit."""
    names, now, rows = ["D", "1", "100"], 10_000_000, []
    for turn in range(rounds):
        for position, name in enumerate(palindrome(names, turn)):
            for place in range(5):
                extra = settle[place] if place < len(settle) else 0
                rows.append((names.index(name), turn // 2, turn, position >= 3, place, now + extra))
                now += 1000
    return dict(zip(COLUMNS, np.array(rows, np.int64).T, strict=True))


@pytest.mark.parametrize("rounds", [1, 4])
def test_block_medians_cancel_a_linear_drift(rounds: int) -> None:
    frames = settled(drifting([500_000, 200_000], rounds), 2)
    values = [block_medians(frames, arm) for arm in range(3)]
    assert len(values[0]) == (rounds + 1) // 2
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-12)


def test_settling_shows_how_many_frames_must_not_count() -> None:
    ratios = settling(drifting([500_000, 200_000]), 0, 2)
    np.testing.assert_allclose(ratios, [1.05, 1.02, 1, 1, 1], atol=0.002)


def test_warm_up_is_over_when_three_windows_agree() -> None:
    assert not is_stable([1.0, 1.0])
    assert is_stable([9.0, 1.0, 1.09, 1.05])
    assert not is_stable([1.0, 1.0, 1.2])


def test_a_visit_has_few_frames_and_lasts_long_enough() -> None:
    standard = PROFILES["standard"]
    assert standard.frames_of_visit(0.016) == (1, 1)
    assert standard.frames_of_visit(0.0004) == (5, 13)


def test_standard_profile_keeps_the_rules() -> None:
    standard = PROFILES["standard"]
    assert standard.processes >= 3 and standard.processes * standard.blocks >= 30 and standard.block_s >= 1
    assert standard.batches == (1, 2, 4, 8, 16, 32, 64, 128)


def test_stage_clock_accounts_for_the_whole_frame() -> None:
    clock = StageClock()

    def frame() -> None:
        for stage in ("encoder", "head"):
            time.sleep(0.001)
            clock.timed(stage, lambda: time.sleep(0.002))

    stages = clock.frame(frame)
    assert list(stages) == ["preprocess", "encoder", "head", "between", "decide", "total"]
    assert stages["encoder"] >= 2 and stages["preprocess"] >= 1 and stages["between"] >= 1
    assert sum(value for stage, value in stages.items() if stage != "total") == pytest.approx(stages["total"])

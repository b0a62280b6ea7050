"""Learning rate and momentum of a mini-batch, as functions of how much of the training is done."""

from __future__ import annotations

from collections.abc import Sequence


def triangular(step: int, total_steps: int, peak_lr: float, momentum: tuple[float, float]) -> tuple[float, float]:
    """Return (learning rate, momentum) of mini-batch `step`, counted from 0.

    The learning rate climbs from 0 to `peak_lr` at half of all mini-batches and falls back to 0; momentum moves against
    it, from momentum[0] at learning rate 0 to momentum[1] at the peak. The released FLSS code never sets a momentum
    itself: it comes from the scheduler's cycling default, 0.9 -> 0.8 -> 0.9 (docs/method.md section 2).
    """
    half = total_steps / 2
    height = max(0.0, 1 - abs(step / half - 1))  # 0 at both ends, 1 in the middle
    return peak_lr * height, momentum[0] + (momentum[1] - momentum[0]) * height


def stepwise(progress: float, peak_lr: float, milestones: Sequence[float], factor: float) -> float:
    """Return the learning rate after `factor` was applied at each milestone, a fraction of the training, passed so far.

    `progress` is that of the epoch's first mini-batch: the rate is constant within an epoch.
    """
    passed = sum(progress >= milestone - 1e-9 for milestone in milestones)
    return float(peak_lr * factor**passed)


def exponential(progress: float, peak_lr: float, final_factor: float) -> float:
    """Return the learning rate that falls by equal factors an epoch, to `final_factor` of the first at the end."""
    return float(peak_lr * final_factor**progress)

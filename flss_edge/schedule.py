"""Learning rate and momentum of the released recipe: one triangle over the whole training."""

from __future__ import annotations


def triangular(step: int, total_steps: int, peak_lr: float, momentum: tuple[float, float]) -> tuple[float, float]:
    """Return (learning rate, momentum) of mini-batch `step`, counted from 0.

    The learning rate climbs from 0 to `peak_lr` at half of all mini-batches and falls back to 0; momentum moves against
    it, from momentum[0] at learning rate 0 to momentum[1] at the peak. The released code never sets a momentum itself:
    it comes from the scheduler's cycling default, 0.9 -> 0.8 -> 0.9 (docs/method.md section 2).
    """
    half = total_steps / 2
    height = max(0.0, 1 - abs(step / half - 1))  # 0 at both ends, 1 in the middle
    return peak_lr * height, momentum[0] + (momentum[1] - momentum[0]) * height

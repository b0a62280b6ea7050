"""Sequential evidence that shares have left their bounds, of the Shiryaev-Roberts kind.

For one share x_t in [0, 1] a block, whose mean the null hypothesis bounds by b whatever came before, and a stake f in
(0, 1), the factor L_t = 1 - f + f x_t / b is never negative and has a mean of at most 1: an e-value, the wealth of
somebody who bets f of it on more than b. The evidence is

    M_t = (M_{t-1} + 1) L_t,  M_0 = 0:

the wealth of all who began to bet at one block or another, so a change counts in full whenever it comes. A bound a from
below is the same test of 1 - x_t under 1 - a. What is compared with the threshold is the mean of M over all shares,
both directions and a few stakes, small ones for small shifts.

False alarms: since E[M_t | past] <= M_{t-1} + 1, M_t - t is a supermartingale, for each M and so for their mean. Let
tau be the first t with M_t >= c. By optional stopping c P(tau <= T) <= E[M_{min(tau, T)}] <= E[min(tau, T)] <= T, so

    P(an alarm within T blocks) <= T / c,  and E[tau] >= c

in the same way. Nothing else is assumed: no distribution, no independence of the shares of one block, nothing of how
they hang together; only that what is still to come has, given all blocks so far, a mean within the bounds.

Source: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2022,
arXiv 2203.03532); the bets are those of I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by
betting" (JRSS B, 2024).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_MOST_BLOCKS = 10_000  # evidence grows exponentially, unless the bounds bound nothing
STAKES = np.array([1 / 64, 1 / 16, 1 / 4, 1 / 2, 9 / 10])  # never 1: a single share of 0 would wipe out all evidence


class Detector:
    """The evidence that some share is above its upper or below its lower bound.

    Args:
        low: (…, S) lower bounds of the shares' means, in [0, 1).
        high: (…, S) upper bounds, in (0, 1]. Leading axes are streams that have nothing to do with one another.

    Raises:
        ValueError: A bound is out of its range.
    """

    def __init__(self, low: FloatArray, high: FloatArray) -> None:
        if low.shape != high.shape or not (np.all((low >= 0) & (low < 1)) and np.all((high > 0) & (high <= 1))):
            raise ValueError("expected as many lower bounds in [0, 1) as upper bounds in (0, 1]")
        bounds = np.concatenate([high, 1.0 - low], axis=-1)  # (…, 2 S): upward, then downward
        self._slopes = STAKES / bounds[..., None]
        self._scores = np.empty((*bounds.shape, 1))
        self._factors = np.empty_like(self._slopes)
        self._rests = np.broadcast_to(1.0 - STAKES, self._slopes.shape[-2:]).copy()
        self._evidence = np.zeros_like(self._slopes)  # (…, 2 S, stakes)
        self._wealth = self._evidence.reshape(*bounds.shape[:-1], -1)  # the same memory
        self._weights = np.full(self._wealth.shape[-1], 1.0 / max(1, self._wealth.shape[-1]))

    def update(self, shares: FloatArray) -> FloatArray:
        """Take the next block and return the evidence after it.

        Args:
            shares: (…, S) each in [0, 1].

        Returns:
            (…,) at least 0; its maximum over T blocks reaches c with probability T / c at most while nothing drifts.
        """
        half = shares.shape[-1]
        self._scores[..., :half, 0] = shares
        np.subtract(1.0, shares, out=self._scores[..., half:, 0])
        np.multiply(self._slopes, self._scores, out=self._factors)
        self._factors += self._rests
        self._evidence += 1.0
        self._evidence *= self._factors
        mean: FloatArray = self._wealth @ self._weights
        return mean

    def fewest_blocks(self, threshold: float) -> int:
        """Return a number of blocks that the evidence cannot reach a threshold in fewer than, whatever they show.

        Each share is taken at its own worst, which a single stream cannot be for all of them at once.

        Args:
            threshold: > 0; of a single stream.
        """
        evidence, factors = np.zeros_like(self._slopes), self._slopes + self._rests
        for blocks in range(1, _MOST_BLOCKS):
            evidence = (evidence + 1.0) * factors
            if evidence.mean() >= threshold:
                return blocks
        return _MOST_BLOCKS

    def strongest(self) -> tuple[int, bool]:
        """Return which share the evidence speaks of most, and whether upward; of a single stream."""
        half = self._evidence.shape[-2] // 2
        place = int(self._evidence.mean(axis=-1).argmax())
        return place % half, place < half

    def reset(self) -> None:
        """Forget all evidence."""
        self._evidence[...] = 0.0

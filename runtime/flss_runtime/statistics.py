"""Exact intervals of counted quantities, on NumPy alone.

SciPy would be a dependency of a hundred megabytes on the robot for one function; the tests compare with it.
"""

from __future__ import annotations

import numpy as np

_BISECTIONS = 60  # halves [0, 1] to below the spacing of float64 around any bound that matters


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a probability from k hits in n independent trials, two-sided and exact.

    Args:
        k: Hits, 0 <= k <= n.
        n: Trials, n >= 1.
        confidence: Coverage that the interval guarantees, in (0, 1).

    Returns:
        (low, high), each in [0, 1]; low is 0 for k = 0 and high is 1 for k = n.

    Raises:
        ValueError: An argument is out of its range.

    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934): each bound is the p whose binomial tail is
    (1 - confidence) / 2.
    """
    _check_counts(k, n, confidence)
    tail = (1.0 - confidence) / 2.0
    return _lower(k, n, tail), 1.0 - _lower(n - k, n, tail)


def clopper_pearson_upper(k: int, n: int, confidence: float = 0.95) -> float:
    """Bound a probability from above, one-sided: 0 hits in 598 trials give just under 0.5 %.

    Args:
        k: Hits, 0 <= k <= n.
        n: Trials, n >= 1.
        confidence: Coverage that the bound guarantees, in (0, 1).

    Raises:
        ValueError: An argument is out of its range.
    """
    _check_counts(k, n, confidence)
    return 1.0 - _lower(n - k, n, 1.0 - confidence)


def _check_counts(k: int, n: int, confidence: float) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n and n >= 1; got k = {k}, n = {n}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}")


def _lower(k: int, n: int, tail: float) -> float:
    """Return the p with P(X >= k) = tail for X ~ Binomial(n, p); 0 for k = 0."""
    if k == 0:
        return 0.0
    hits = np.arange(k, n + 1, dtype=np.float64)  # (n - k + 1,)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))])  # (n + 1,)
    log_ways = log_factorial[n] - log_factorial[k:] - log_factorial[: n - k + 1][::-1]  # log of n over hits
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        p = (low + high) / 2.0
        if p in (low, high):
            break
        terms = log_ways + hits * np.log(p) + (n - hits) * np.log1p(-p)
        if np.exp(terms).sum() < tail:
            low = p
        else:
            high = p
    return (low + high) / 2.0

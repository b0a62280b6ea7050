"""Two classifiers on the same images: paired differences, and the control at matched coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flss_edge.classifiers.answers import CLEAN, Answers, BoolArray, IntArray, threshold_for_coverage
from flss_edge.robustness.metrics import index_sets, thresholded, worst_case

_NORMAL_975 = 1.959963984540054


def paired(first: BoolArray, second: BoolArray) -> dict[str, Any]:
    """Compare how often two classifiers have a property on the same n images.

    Args:
        first: (n,) bool, n >= 1.
        second: (n,) bool.

    Returns:
        "first" and "second", their shares; "difference" first - second with its 95 % "interval"; "p_value" of the
        exact two-sided McNemar test; "only_first" and "only_second", counts of images; "n".

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data" (2012): one image is added to either kind of disagreement, so that no disagreement seen does
    not pass for none possible.
    """
    n, a, b = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    p, q = (a + 1) / (n + 2), (b + 1) / (n + 2)
    reach = _NORMAL_975 * float(np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return {
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": (a - b) / n,
        "interval": [max(-1.0, p - q - reach), min(1.0, p - q + reach)],
        "p_value": _sign_test(a, b),
        "only_first": a,
        "only_second": b,
        "n": n,
    }


def compare(labels: IntArray, first: Mapping[str, Answers], second: Mapping[str, Answers]) -> dict[str, Any]:
    """Compare two classifiers at the thresholds that they have, under the attacks that each was given.

    Args:
        labels: (n,) int64, the true classes.
        first: attack -> its answers; "clean" is one of them.
        second: likewise.

    Returns:
        `paired` of "coverage" (clean), "fc", "fw" and "robust_with_detection"; and "n".
    """
    parts = []
    for answers in (first, second):
        clean, worst = index_sets(labels, answers[CLEAN]), worst_case(labels, answers)
        parts.append(
            {
                "coverage": ~clean.rejected,
                "fc": worst.correct,
                "fw": worst.wrong,
                "robust_with_detection": clean.correct & ~worst.wrong,
            }
        )
    return {"n": len(labels), **{name: paired(parts[0][name], parts[1][name]) for name in parts[0]}}


def at_coverage_of(first: Mapping[str, Answers], second: Mapping[str, Answers]) -> dict[str, Answers]:
    """Return the second's answers with the threshold at which it answers as many clean images as the first.

    Where equal scores stand in the way, it answers the next larger number that it can, so none is favoured by
    answering less than it might.
    """
    threshold = threshold_for_coverage(second[CLEAN].scores, int(first[CLEAN].accepted.sum()))
    return thresholded(second, threshold)


def _sign_test(a: int, b: int) -> float:
    """Return the probability that a + b fair coins fall at least as unevenly as a against b."""
    coins = a + b
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, coins + 1)))])
    heads = np.arange(min(a, b) + 1)
    log_ways = log_factorial[coins] - log_factorial[heads] - log_factorial[coins - heads]
    return min(1.0, 2.0 * float(np.exp(log_ways - coins * np.log(2.0)).sum()))

"""Risk against coverage: what every threshold would give, on clean images and in the worst case over attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flss_edge.classifiers.answers import CLEAN, Answers, BoolArray, FloatArray, IntArray

POINTS = 101  # of a curve in the results; the areas are taken over all thresholds


def levels(labels: IntArray, answers: Mapping[str, Answers]) -> tuple[FloatArray, BoolArray]:
    """Return up to which threshold each image counts, and as what: everything the worst case needs to know.

    An image that some attack gets misclassified is in S_FW up to the highest score of its wrong answers. One that
    never is, is in S_FC up to its lowest score. For a single attack the level is its score.

    Args:
        labels: (n,) int64, the true classes.
        answers: attack -> answers to the n images; at least one.

    Returns:
        level: (n,) float64; the image counts at threshold t iff level >= t.
        wrong: (n,) bool: it counts to S_FW, else to S_FC.
    """
    wrong = np.stack([one.labels != labels for one in answers.values()])  # (A, n)
    scores = np.stack([one.scores for one in answers.values()])  # (A, n)
    ever: BoolArray = np.logical_or.reduce(wrong)
    return np.where(ever, np.where(wrong, scores, -np.inf).max(axis=0), scores.min(axis=0)), ever


def risk_coverage(labels: IntArray, answers: Mapping[str, Answers], points: int = POINTS) -> dict[str, Any]:
    """Return the figures that each threshold would give.

    Both risks are drawn over the coverage of clean images, the price that the threshold has: two classifiers at the
    same place answer equally many of them.

    Args:
        labels: (n,) int64, the true classes, n >= 1.
        answers: attack -> answers to the n images; "clean" is one of them.
        points: the most thresholds to return; they are spread evenly over the coverage, and the last accepts all.

    Returns:
        Lists of one length, thresholds falling: threshold; coverage and risk (wrong among the accepted) of the clean
        images; fc and fw, shares of the n images in the worst case; attacked_risk = fw / (fc + fw), None where neither
        is left. And "area" and "attacked_area": the mean risk over the coverage from 0 to 1, in [0, 1], the lower the
        better; where the attacker gets every answer withheld, the risk is 0.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks" (2017), for the curve and
    its area; the worst case is the paper's S_FC and S_FW (docs/method.md, section 4) at every threshold.
    """
    clean = answers[CLEAN]
    thresholds = np.unique(clean.scores)[::-1]  # (T,), falling: each accepts at least one clean image more
    coverage = _at_least(clean.scores, thresholds) / len(labels)
    risk = _at_least(clean.scores[clean.labels != labels], thresholds) / (coverage * len(labels))
    level, wrong = levels(labels, answers)
    fc, fw = (_at_least(level[part], thresholds) / len(labels) for part in (~wrong, wrong))
    attacked = np.divide(fw, fc + fw, out=np.full(len(fw), np.nan), where=fc + fw > 0)
    shown = np.unique(np.searchsorted(coverage, np.linspace(coverage[0], 1.0, points)))
    curves = {"threshold": thresholds, "coverage": coverage, "risk": risk, "fc": fc, "fw": fw}
    return {
        **{name: values[shown].tolist() for name, values in curves.items()},
        "attacked_risk": [None if np.isnan(value) else float(value) for value in attacked[shown]],
        "area": _area(coverage, risk),
        "attacked_area": _area(coverage, np.nan_to_num(attacked)),
    }


def score_histogram(labels: IntArray, answers: Mapping[str, Answers], highest: float, bins: int = 25) -> dict[str, Any]:
    """Return how many images have which score, clean and in the worst case (`levels`).

    Args:
        labels: (n,) int64, the true classes.
        answers: attack -> answers to the n images; "clean" is one of them.
        highest: the highest possible score: N for votes, 1 for a confidence. Scores outside [0, highest] count to
            the bins at the ends.
        bins: how many, of equal width.

    Returns:
        "edges", bins + 1 of them; "clean" and "attacked", each {"correct": counts, "wrong": counts}.
    """
    edges = np.linspace(0.0, highest, bins + 1)
    found: dict[str, Any] = {"edges": edges.tolist()}
    for name, group in (("clean", {CLEAN: answers[CLEAN]}), ("attacked", answers)):
        level, wrong = levels(labels, group)
        inside = np.clip(level, 0.0, highest)
        parts = {"correct": inside[~wrong], "wrong": inside[wrong]}
        found[name] = {key: np.histogram(part, edges)[0].tolist() for key, part in parts.items()}
    return found


def _at_least(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Return how many of the scores, (m,), reach each threshold, (T,)."""
    return (len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")).astype(np.float64)


def _area(coverage: FloatArray, risk: FloatArray) -> float:
    """Return the mean risk over the coverage; images of one score enter together, at the risk of their threshold."""
    return float((risk * np.diff(coverage, prepend=0.0)).sum())

"""The paper's figures and stricter ones, from what a selective classifier answered under each attack; NumPy only.

For one attack every image is accepted and correct (FC), accepted and wrong (FW), or rejected (R). An evaluation takes
the worst over its attacks, image by image, and the untouched images are one of them (docs/method.md, section 4).
All figures are shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from flss_edge.classifiers.answers import CLEAN, Answers, BoolArray, IntArray
from flss_runtime.errors import UsageError
from flss_runtime.statistics import clopper_pearson

Share: TypeAlias = dict[str, Any]
"""{"count": k, "n": n, "share": k / n, "interval": [low, high]}, the interval of Clopper and Pearson at 95 %."""


@dataclass(frozen=True, eq=False)
class IndexSets:
    """What became of n images; under one attack the three are disjoint and cover all images.

    Attributes:
        correct: (n,) bool, accepted and correct (FC); over several attacks: under every one of them.
        wrong: (n,) bool, accepted and wrong (FW); over several attacks: under at least one.
        rejected: (n,) bool (R); over several attacks: under at least one.
    """

    correct: BoolArray
    wrong: BoolArray
    rejected: BoolArray


def index_sets(labels: IntArray, answers: Answers) -> IndexSets:
    """Return what one attack made of the images.

    Args:
        labels: (n,) int64, the true classes.
        answers: to the n attacked images.

    Raises:
        UsageError: their numbers differ.
    """
    if len(answers) != len(labels):
        problem = f"there are answers to {len(answers)} images and labels of {len(labels)}"
        raise UsageError(problem, "pass the answers to all images, in their order")
    right = answers.labels == labels
    return IndexSets(answers.accepted & right, answers.accepted & ~right, ~answers.accepted)


def worst_case(labels: IntArray, answers: Mapping[str, Answers]) -> IndexSets:
    """Return S_FC, S_FW and R: the intersection of FC and the unions of FW and R over all attacks.

    S_FC is disjoint from the other two and its complement is their union; S_FW and R may overlap.

    Args:
        labels: (n,) int64, the true classes.
        answers: attack -> answers to the n images; at least one.

    Raises:
        UsageError: no attack, or their numbers differ.
    """
    if not answers:
        raise UsageError("there are no answers to summarise", 'pass at least those to the "clean" images')
    each = [index_sets(labels, one) for one in answers.values()]
    return IndexSets(
        np.logical_and.reduce([one.correct for one in each]),
        np.logical_or.reduce([one.wrong for one in each]),
        np.logical_or.reduce([one.rejected for one in each]),
    )


def summarise(
    labels: IntArray, answers: Mapping[str, Answers], no_sampling: Mapping[str, Answers] | None = None
) -> dict[str, Any]:
    """Return every figure of one classifier under one group of attacks.

    Args:
        labels: (n,) int64, the true classes, n >= 1.
        answers: attack -> answers to the n images; "clean" is one of them.
        no_sampling: the same attacks answered by the same network without sampling; only its labels count. For a
            classifier that does not sample these are its own answers. None where there is no such classifier.

    Returns:
        "n"; "attacks", their names; and these shares, each None where nothing is counted:
        nat_ns, nat_0, adv_ns, adv_0: accuracy if nothing is rejected, on clean images and in the worst case, without
            sampling (ns) and as the classifier answers (0);
        nat_10: correct among the accepted clean images (at the threshold in use, 10 % budget or not);
        adv_10: |S_FC| / (|S_FC| + |S_FW|). Its interval takes the denominator as given;
        fc, fw, mpr: sizes of S_FC, S_FW and R. fc is the strict robust accuracy: a rejection counts as a success of
            the attack;
        one_minus_fw: never wrongly accepted; a rejection is free;
        robust_with_detection: accepted and correct on the clean image, and never wrongly accepted;
        coverage: accepted clean images.

    Raises:
        UsageError: "clean" or an attack of `no_sampling` is missing, no image, or the numbers differ.

    Source: docs/method.md, section 4.
    """
    _check(labels, answers, no_sampling)
    n, clean, worst = len(labels), index_sets(labels, answers[CLEAN]), worst_case(labels, answers)
    figures: dict[str, Any] = {"n": n, "attacks": list(answers)}
    same = {name: no_sampling[name] for name in answers} if no_sampling is not None else {}
    for suffix, each in (("ns", same), ("0", answers)):
        right = {name: one.labels == labels for name, one in each.items()}
        figures[f"nat_{suffix}"] = share_of(right[CLEAN]) if right else None
        figures[f"adv_{suffix}"] = share_of(np.logical_and.reduce(list(right.values()))) if right else None
    kept, fooled = int(worst.correct.sum()), int(worst.wrong.sum())
    return figures | {
        "nat_10": share(int(clean.correct.sum()), int((~clean.rejected).sum())),
        "adv_10": share(kept, kept + fooled),
        "fc": share(kept, n),
        "fw": share(fooled, n),
        "mpr": share_of(worst.rejected),
        "one_minus_fw": share_of(~worst.wrong),
        "robust_with_detection": share_of(clean.correct & ~worst.wrong),
        "coverage": share_of(~clean.rejected),
    }


def per_attack(labels: IntArray, answers: Mapping[str, Answers]) -> dict[str, dict[str, float]]:
    """Return for each attack alone the shares fc, fw and r, accuracy_0 (nothing rejected) and n."""
    rows = {}
    for name, one in answers.items():
        found = index_sets(labels, one)
        parts = {"fc": found.correct, "fw": found.wrong, "r": found.rejected, "accuracy_0": one.labels == labels}
        rows[name] = {key: float(part.mean()) for key, part in parts.items()} | {"n": len(labels)}
    return rows


def thresholded(answers: Mapping[str, Answers], threshold: float) -> dict[str, Answers]:
    """Return the same answers with another threshold: accepted iff the score is at least that."""
    return {name: replace(one, accepted=one.scores >= threshold) for name, one in answers.items()}


def official(answers: Mapping[str, Answers], min_votes: int, num_samples: int) -> dict[str, Answers]:
    """Return the answers as the released scripts would reject: one level of votes more than their own rule asks for.

    They store the strict threshold t* = min_votes - 1, add 1 when they read it, and reject at that many votes or fewer.
    Where even N - 1 votes stay within the budget they store N - 2, so nobody needs more than N votes.

    Args:
        answers: of a classifier whose scores are votes.
        min_votes: of the strict rule, 1 to N.
        num_samples: N.

    Source: docs/method.md, section 3.
    """
    return thresholded(answers, min(min_votes + 1, num_samples))


def share_of(part: BoolArray) -> Share | None:
    """Return what share of the n images is in the part, (n,) bool; None for no images."""
    return share(int(part.sum()), len(part))


def share(count: int, n: int) -> Share | None:
    """Return count / n with its exact 95 % interval; None for n = 0."""
    return None if n == 0 else {"count": count, "n": n, "share": count / n, "interval": list(_interval(count, n))}


@lru_cache(maxsize=4096)  # a sweep asks for the same few again and again
def _interval(count: int, n: int) -> tuple[float, float]:
    return clopper_pearson(count, n)


def _check(labels: IntArray, answers: Mapping[str, Answers], no_sampling: Mapping[str, Answers] | None) -> None:
    if CLEAN not in answers:
        raise UsageError('the answers to the "clean" images are missing', "answer the untouched images too")
    if not len(labels):
        raise UsageError("there are no images to summarise", "evaluate at least one image")
    missing = [name for name in answers if no_sampling is not None and name not in no_sampling]
    if missing:
        problem = f"without sampling there are no answers under {', '.join(missing)}"
        raise UsageError(problem, "let the classifier without sampling answer the same attacks")

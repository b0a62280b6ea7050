"""CCAT's adaptive attack: from many starts, for the surest wrong answer.

Source: Stutz et al., ICML 2020, and the settings of its released evaluation.
"""

from __future__ import annotations

import math

from torch import Tensor

from flss_edge.adversary import ObjectiveEach
from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import cross_entropy, per_image, strongest
from flss_edge.confidence_attack import confidence_attack, log_wrong_confidence, uniform_norm_start
from flss_edge.minibatch import Draws


def confidence_wrong(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 1000,
    step_size: float = 0.001,
    factor: float = 1.1,
    restarts: int = 10,
) -> Tensor:
    """Attack the largest probability of a wrong class, from random starts and from the image itself.

    Each image keeps the end with the surest wrong class, whether or not that is the answer.

    Args:
        victim: its softmax is attacked; a random one's is averaged over its draws, which should stay the same from call
            to call: the attack compares values.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers of the starts.
        steps: gradient steps of each start.
        step_size: the first, in pixel units.
        factor: above 1, what an image divides its step size by where its objective would fall.
        restarts: random starts, their L-infinity norm uniform up to epsilon; the image itself is one more.
    """
    objective = _surest_wrong(victim, labels)
    return _best_end(
        objective, objective, images, draws, restarts, epsilon=epsilon, steps=steps, step_size=step_size, factor=factor
    )


def confidence_ce(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 200,
    step_size: float = 0.05,
    factor: float = 1.25,
    restarts: int = 50,
) -> Tensor:
    """Attack the cross-entropy with the same momentum and backtracking, in fewer steps and from more starts.

    Arguments as `confidence_wrong`, the image itself being one more start here too. The ends are compared by their
    surest wrong class, because that is what a threshold sees.
    """
    return _best_end(
        per_image(victim, cross_entropy, labels),
        _surest_wrong(victim, labels),
        images,
        draws,
        restarts,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        factor=factor,
    )


def _best_end(
    raised: ObjectiveEach,
    compared: ObjectiveEach,
    images: Tensor,
    draws: Draws,
    restarts: int,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    factor: float,
) -> Tensor:
    def end_from(start: Tensor) -> Tensor:
        return confidence_attack(
            raised, images, start, epsilon=epsilon, step_size=step_size, steps=steps, factor=factor
        )

    starts = (uniform_norm_start(images, draws, epsilon, f"start {number}") for number in range(restarts))
    return strongest((end_from(start) for start in (images, *starts)), compared)


def _surest_wrong(victim: Victim, labels: Tensor) -> ObjectiveEach:
    """The logarithm of the largest probability of a wrong class."""

    def scores(images: Tensor) -> Tensor:
        logits = victim(images)
        if logits.dim() == 2:
            return logits
        return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))

    return log_wrong_confidence(scores, labels)

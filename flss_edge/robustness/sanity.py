"""Checks of an evaluation itself: signs that its attacks are too weak, or that it flatters in another way.

Sources: Carlini et al. 2019 (epsilon, steps, black box against white box); Croce and Hein, ICML 2020 (AutoAttack's
flags for zero gradients and random answers); Zimmermann et al., NeurIPS 2022 (planted examples). Two attacks are
compared image by image, and a difference counts only where chance would hardly make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flss_edge.adversary import uniform_start, value_and_gradient
from flss_edge.attacks import Attack, PlannedAttack, Victim
from flss_edge.attacks.apgd import apgd_ce
from flss_edge.attacks.eot import ExpectationOverTransformation
from flss_edge.attacks.objectives import cross_entropy, margin, over_draws, per_image
from flss_edge.attacks.pgd import pgd_attack
from flss_edge.attacks.square import square
from flss_edge.classifiers.answers import Answers, BoolArray, IntArray
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws
from flss_edge.robustness.check import Check
from flss_edge.robustness.overlap import data_is_new
from flss_edge.robustness.planted import Features, planted_are_found

EPSILONS = tuple(level / 255 for level in (0, 1, 2, 4, 8, 16, 32, 64, 128))
SIGNIFICANCE = 0.01  # a weaker attack that wins as often by chance in fewer than 1 of 100 evaluations is an alarm
PASSES = 5
FINDER: Attack = partial(apgd_ce, steps=50)


def run_checks(
    classifiers: Sequence[SelectiveClassifier],
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws_of: Callable[[str], Draws],
    features: Features | None = None,
    attack: Attack = FINDER,
    transferred: Mapping[str, Tensor] | None = None,
    evaluated: ImageSet | None = None,
    known: Mapping[str, ImageSet | str | None] | None = None,
    queries: int = 500,
    first: int = 0,
) -> list[Check]:
    """Run every check on some of the evaluation's images; a hundred are enough.

    Args:
        classifiers: those of the evaluation; asked whether they answer twice alike, and attacked through their noise.
        victim: the path without sampling, in eval mode.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: of the evaluation, in pixel units of [0, 1].
        draws_of: name of a check -> random numbers of this batch.
        features: of the victim's network; None leaves out the planted examples.
        attack: that has to find the planted examples.
        transferred: adversarial images that were made on other networks, like `images`, by their origin.
        evaluated: all images of the evaluation.
        known: as `data_is_new`.
        queries: of Square.
        first: noise counter from which the classifiers are asked.
    """
    white = {steps: _pgd(victim, images, labels, epsilon, draws_of("steps"), steps) for steps in (10, 100)}
    fooled = {steps: _wrong(victim, each, labels) for steps, each in white.items()}
    black = {"Square": square(victim, images, labels, epsilon=epsilon, draws=draws_of("square"), queries=queries)}
    black |= {f"transfer from {origin}": each for origin, each in (transferred or {}).items()}
    checks = [
        accuracy_falls(victim, images, labels, draws=draws_of("epsilon")),
        not_weaker("more steps", "PGD-100", fooled[100], "PGD-10", fooled[10], MORE_STEPS),
        *(
            not_weaker(f"white box against {name}", "PGD-100", fooled[100], name, _wrong(victim, each, labels), MASKED)
            for name, each in black.items()
        ),
        gradients_are_there(victim, images, labels, epsilon=epsilon, draws=draws_of("gradients")),
        *(more_samples(each, images, labels, epsilon=epsilon, draws_of=draws_of, first=first) for each in classifiers),
        *(repeats_itself(each, images, first=first) for each in classifiers),
    ]
    if features is not None:
        checks.append(planted_are_found(attack, features, images, epsilon=epsilon, draws=draws_of("planted")))
    if evaluated is not None:
        checks.append(data_is_new(evaluated, known or {}))
    return [check for check in checks if check is not None]


def accuracy_falls(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    draws: Draws,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 20,
) -> Check:
    """Check that accuracy under attack never rises with epsilon and is zero at the largest.

    At 128/255 every image can be made grey, so what stays correct there was not attacked.
    """
    run = partial(apgd_ce, steps=steps)
    wrong = [_wrong(victim, run(victim, images, labels, epsilon=each, draws=draws), labels) for each in epsilons]
    accuracies = [float(1 - each.mean()) for each in wrong]
    chance = min((_chance(smaller & ~larger, larger & ~smaller) for smaller, larger in pairwise(wrong)), default=1.0)
    shown = ", ".join(f"{value:.1%} at {255 * each:g}/255" for value, each in zip(accuracies, epsilons, strict=True))
    passed = chance >= SIGNIFICANCE and accuracies[-1] == 0
    values = {"epsilons": list(epsilons), "accuracies": accuracies, "chance_of_rise": chance, "images": len(labels)}
    return Check("accuracy against epsilon", passed, f"accuracy {shown}", values, "" if passed else MASKED)


def not_weaker(
    name: str,
    strong: str,
    fooled_by_strong: BoolArray,
    weak: str,
    fooled_by_weak: BoolArray,
    advice: str,
    *,
    chosen_from: int = 1,
) -> Check:
    """Check that the attack that should be the stronger one is not the weaker one, image by image.

    Exact one-sided sign test on the images that only one of the two fools (McNemar).

    Args:
        name: of the check.
        strong: name of the attack that should be the stronger one.
        fooled_by_strong: (n,) bool.
        weak: name of the other.
        fooled_by_weak: (n,) bool.
        advice: what to do if it is not so.
        chosen_from: number of attacks of which the other one is the best; the chance is multiplied by it.
    """
    only_weak, only_strong = fooled_by_weak & ~fooled_by_strong, fooled_by_strong & ~fooled_by_weak
    chance = min(1.0, chosen_from * _chance(only_weak, only_strong))
    passed = chance >= SIGNIFICANCE
    counts = {
        "fooled_by_strong": int(fooled_by_strong.sum()),
        "fooled_by_weak": int(fooled_by_weak.sum()),
        "only_by_strong": int(only_strong.sum()),
        "only_by_weak": int(only_weak.sum()),
    }
    text = (
        f"of {len(only_weak)} images {strong} fools {counts['fooled_by_strong']} and {weak} "
        f"{counts['fooled_by_weak']}; {counts['only_by_weak']} fall to {weak} only, {counts['only_by_strong']} to "
        f"{strong} only"
    )
    values = {"strong": strong, "weak": weak, **counts, "chance": chance, "images": len(only_weak)}
    return Check(name, passed, text, values, "" if passed else advice)


def adaptive_is_stronger(
    labels: IntArray, answers: Mapping[str, Mapping[str, Answers]], plan: Sequence[PlannedAttack]
) -> list[Check]:
    """Check for every attacked classifier that its own best attack finds no less than the best of the others.

    What counts is an answer that is accepted and wrong, at the largest radius. One attack stands against one, because
    the worst case over several is with fresh noise also one over as many draws. The other one is the best of many, so
    the chance is multiplied by their number (Bonferroni).

    Args:
        labels: (n,) int64, the true classes.
        answers: classifier -> attack -> answers to the n images.
        plan: the attacks, with the classifiers that they know.
    """
    checks = []
    for name in dict.fromkeys(attack.victim for attack in plan if attack.victim):
        fooled = {
            attack.name: answers[name][attack.name].accepted & (answers[name][attack.name].labels != labels)
            for attack in plan
        }
        largest = max((each.epsilon for each in plan if each.victim == name), default=0.0)
        equal = [each for each in plan if each.epsilon == largest and each.bounded]
        own = [each.name for each in equal if each.victim == name and "accepted-wrong" in each.name]
        others = [each.name for each in equal if not each.victim]
        if own and others:
            strong, weak = (max(names, key=lambda each: int(fooled[each].sum())) for names in (own, others))
            pair = strong, fooled[strong], weak, fooled[weak]
            checks.append(not_weaker(f"aim at {name}", *pair, NAIVE, chosen_from=len(others)))
    return checks


def gradients_are_there(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Check:
    """Check that no image has an input gradient of zero or of no finite size, on the image and beside it."""
    beside = uniform_start(images, draws.uniform("beside", *images.shape[1:]), epsilon).clamp(0, 1)
    values: dict[str, Any] = {"images": len(labels)}
    for loss_name, loss in (("cross_entropy", cross_entropy), ("margin", margin)):
        for place, points in (("clean", images), ("in_ball", beside)):
            _, gradient = value_and_gradient(per_image(victim, loss, labels), points)
            each = gradient.flatten(1)
            values[f"zero_{loss_name}_{place}"] = float((each == 0).all(dim=1).double().mean())
            values[f"not_finite_{loss_name}_{place}"] = float((~torch.isfinite(each)).any(dim=1).double().mean())
    zero, broken = (
        max(value for key, value in values.items() if key.startswith(kind)) for kind in ("zero", "not_finite")
    )
    passed = zero == 0 and broken == 0
    text = f"the input gradient is all zero on up to {zero:.1%} of {len(labels)} images, not finite on {broken:.1%}"
    return Check("gradients", passed, text, values, "" if passed else NO_GRADIENT)


def more_samples(
    classifier: SelectiveClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws_of: Callable[[str], Draws],
    first: int,
    samples: tuple[int, int] = (1, 10),
    steps: int = 10,
) -> Check | None:
    """Check that an attack that averages over more draws is not weaker; None where nothing is drawn.

    Both are judged by the same answers, which neither has seen.
    """
    draws = draws_of(f"samples {classifier.name}")
    with torch.no_grad():
        one, other = (classifier.sampled_logits(images, 1, draws, name) for name in ("one", "other"))
    if torch.equal(one, other):
        return None
    fooled = []
    for count in samples:
        averaged = ExpectationOverTransformation(classifier, count, draws)
        perturbed = pgd_attack(averaged, images, labels, epsilon=epsilon, draws=draws, steps=steps)
        fooled.append(classifier.answer(perturbed, first).labels != labels.cpu().numpy())
    few, many = (f"PGD-{steps} over {count} draws" for count in samples)
    return not_weaker(f"more draws of {classifier.name}", many, fooled[1], few, fooled[0], MORE_SAMPLES)


def repeats_itself(classifier: SelectiveClassifier, images: Tensor, *, first: int, passes: int = PASSES) -> Check:
    """Say how often the decision about an image differs between two passes; nothing failed where it does."""
    decisions = []
    for number in range(passes):
        answers = classifier.answer(images, first + number * len(images))
        decisions.append(np.where(answers.accepted, answers.labels, -1))
    flips = float(np.mean([a != b for a, b in pairwise(decisions)]))
    ever = float(np.mean(np.ptp(np.stack(decisions), axis=0) > 0))
    text = f"{classifier.name}: {flips:.1%} of the decisions differ between two passes"
    text += f", {ever:.1%} of {len(images)} images change theirs within {passes}"
    values = {"flips": flips, "changed": ever, "passes": passes, "images": len(images)}
    random = flips > 0
    return Check(f"repeats of {classifier.name}", None if random else True, text, values, RANDOM if random else "")


MORE_STEPS = "Attack with more steps and restarts until nothing changes; the step size may be too large for many steps."
NAIVE = "Give the adaptive attacks more steps, restarts or targets; suite all lets them begin at the others' images."
MORE_SAMPLES = "Attack with more draws a gradient, and repeat it: the noise of single draws leads the attack astray."
MASKED = (
    "The gradients mislead the attack (masking): remove or replace what is not differentiable, try other losses and "
    "larger steps, and count the images that any attack fools, the black box included."
)
NO_GRADIENT = "Attack the margin or the DLR loss, in float64, or replace the layer that stops the gradient."
RANDOM = "Average attacks over draws (--samples), repeat the evaluation, and read the persistent attacker's figures."


def _pgd(victim: Victim, images: Tensor, labels: Tensor, epsilon: float, draws: Draws, steps: int) -> Tensor:
    return pgd_attack(victim, images, labels, epsilon=epsilon, draws=draws, steps=steps)


def _wrong(victim: Victim, images: Tensor, labels: Tensor) -> BoolArray:
    with torch.no_grad():
        answers = over_draws(victim(images), dims=2).argmax(dim=1)
    wrong: BoolArray = (answers != labels).cpu().numpy()
    return wrong


def _chance(unexpected: BoolArray, expected: BoolArray) -> float:
    """Return the probability of at least so many unexpected ones if both kinds were equally likely."""
    hits, trials = int(unexpected.sum()), int(unexpected.sum() + expected.sum())
    return float(sum(math.comb(trials, count) for count in range(hits, trials + 1)) / 2**trials)

"""Attacks by someone who knows the vote and the rejection, on any selective classifier.

Three goals: an answer that is accepted and wrong, a wrong answer whatever the rejection says, and a rejection. Each
ascends soft class scores whose random draws stay fixed within one ascent (common random numbers, so that the ascent has
a function to climb), and every ascent has draws of its own. What an ascent found is then judged by held-out draws, none
of which any ascent has seen: a perturbation that only suits its own noise is worth nothing against fresh noise, and is
not chosen. A model without randomness, such as the control without sampling, goes through the same code.

Sources: Carlini et al. 2019 and Tramer et al., NeurIPS 2020 (attack the whole defence, its rejection included); Athalye
et al., ICML 2018 (average over the defence's randomness).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from flss_edge.adversary import ObjectiveEach, uniform_start
from flss_edge.attacks import Victim
from flss_edge.attacks.apgd import ascend
from flss_edge.attacks.closed_form import closed_form_objective, gate_objective
from flss_edge.attacks.objectives import margin, other_classes, per_image, strongest
from flss_edge.classifiers.answers import Answers, BoolArray, IntArray
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.minibatch import Draws, seed_of
from flss_runtime.errors import UsageError

QUERIES = 4  # answers to a candidate while it is judged: what is accepted at all, beside the finer held-out scores
HARD = 0.05  # a temperature at which a soft vote is nearly a vote, and still orders candidates on which all agree
SHARPNESS = 10.0  # of the smooth maximum that the forced rejection lowers
HELD_OUT_COUNTERS = 2**48  # no evaluation counts its images this far, so the judge never meets the noise of the test
OBJECTIVES = ("score", "margin", "closed-form", "gate")

Scores = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> the logarithm of the soft score of each class, (B, K)."""


def accepted_and_wrong(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    targets: int = 9,
    restarts: int = 2,
    steps: int = 50,
    samples: int = 20,
    temperature: float = 0.5,
    held_out: int = 200,
    objective: str = "score",
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """Return images that the classifier accepts and gives a wrong class, where such were found.

    For each start and each target class, an ascent raises that class's score. Of all these, the starts and the image
    itself, the one that held-out draws like best is returned.

    Args:
        victim: a selective classifier.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1].
        draws: this batch's random numbers.
        targets: wrong classes an image, those with the highest score on the clean image first.
        restarts: the first begins at the image, every other one anywhere in the ball.
        steps: of each ascent.
        samples: random draws whose soft votes are averaged during an ascent.
        temperature: of the softmax that stands for one vote.
        held_out: draws that judge what an ascent found.
        objective: "score" raises the soft score of the target; "margin" its logit's lead over all others without
            sampling, which has a gradient where a confidence is almost 0 or 1; "closed-form" its smallest pairwise
            margin in standard deviations (`closed_form`; an FLSS network with a linear head); "gate" opens the gate of
            a cascade.
        starts: more places to begin at, each like `images`: what other attacks have found.

    Raises:
        UsageError: the victim does not reject, or has not what the objective needs.
    """
    soft = SoftScores(_selective(victim), draws, samples, temperature)
    target_classes = other_classes(soft.log("ranks"), images, labels)[:, :targets].unbind(dim=1)

    def candidates() -> Iterator[Tensor]:
        for number, begin in enumerate(_beginnings(images, draws, epsilon, restarts, starts)):
            for rank, target in enumerate(target_classes):
                name = f"{objective} {number} {rank}"
                raised = _towards(soft, objective, target, name)
                yield ascend(raised, images, begin(name), epsilon=epsilon, steps=steps)

    judge = HeldOut(soft.classifier, labels, draws, held_out)
    return judge.best([images, *_inside(images, starts, epsilon)], candidates(), ACCEPTED_AND_WRONG)


def wrong_majority(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    restarts: int = 2,
    steps: int = 50,
    samples: int = 20,
    temperature: float = 0.5,
    held_out: int = 200,
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """Return images whose top class is wrong, accepted or not; arguments and errors as `accepted_and_wrong`.

    What rises is the largest wrong score over the true class's, as a difference of logarithms: it has the sign of the
    difference of the scores, and a gradient even where one of them is almost 1.
    """
    soft = SoftScores(_selective(victim), draws, samples, temperature)
    found = _untargeted(
        soft,
        lambda scores: margin(scores, labels),
        images,
        _beginnings(images, draws, epsilon, restarts, starts),
        epsilon,
        steps,
    )
    judge = HeldOut(soft.classifier, labels, draws, held_out)
    return judge.best([images, *_inside(images, starts, epsilon)], found, WRONG)


def forced_rejection(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    restarts: int = 2,
    steps: int = 50,
    samples: int = 20,
    temperature: float = 0.5,
    held_out: int = 200,
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """Return images that the classifier rejects, where such were found; arguments and errors as `accepted_and_wrong`.

    What falls is a smooth maximum of the scores, so that the runner-up is kept from taking over. To reject what is
    nearly clean costs the defender most, so evaluations call this with small parts of their epsilon too.
    """
    soft = SoftScores(_selective(victim), draws, samples, temperature)

    def unsure(scores: Tensor) -> Tensor:
        return -torch.logsumexp(SHARPNESS * scores, dim=1) / SHARPNESS

    found = _untargeted(soft, unsure, images, _beginnings(images, draws, epsilon, restarts, starts), epsilon, steps)
    judge = HeldOut(soft.classifier, labels, draws, held_out)
    return judge.best([images, *_inside(images, starts, epsilon)], found, REJECTED)


@dataclass(frozen=True)
class SoftScores:
    """A classifier's differentiable scores, with the settings that one attack keeps."""

    classifier: SelectiveClassifier
    draws: Draws
    samples: int
    temperature: float

    def log(self, name: str) -> Scores:
        """Return the logarithm of the class scores under the draws called `name`: always the same function."""

        def scores(images: Tensor) -> Tensor:
            soft = self.classifier.class_scores(images, self.samples, self.draws, f"soft {name}", self.temperature)
            return soft.clamp_min(torch.finfo(soft.dtype).tiny).log()

        return scores


@dataclass(frozen=True)
class Goal:
    """What an attacker wants.

    Attributes:
        reached: answers (B) and labels (B,) -> (B,) bool.
        nearness: scores (B, K) and labels (B,) -> (B,) in [0, 1], which orders what the few answers do not part.
    """

    reached: Callable[[Answers, IntArray], BoolArray]
    nearness: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HeldOut:
    """The judge: fresh answers and nearly hard votes by draws that no ascent has seen, the same for every candidate."""

    classifier: SelectiveClassifier
    labels: Tensor
    draws: Draws
    samples: int

    def best(self, known: Iterable[Tensor], found: Iterable[Tensor], goal: Goal) -> Tensor:
        """Return for each image the candidate (B, 3, H, W) of the highest value, the earliest of equal ones."""
        return strongest(chain(known, found), lambda images: self.value(images, goal)).detach()

    @torch.no_grad()
    def value(self, images: Tensor, goal: Goal) -> Tensor:
        """Return (B,): how often the answers reach the goal, plus how near the scores are to it."""
        labels = self.labels.cpu().numpy()
        first = HELD_OUT_COUNTERS + seed_of(self.draws.seed, self.draws.step, "held out") % HELD_OUT_COUNTERS
        first += self.draws.rows.indices(self.draws.size)[0]
        scores = self.classifier.class_scores(images, self.samples, self.draws, "held out", HARD)
        value = goal.nearness(scores, self.labels)
        for query in range(QUERIES):
            answers = self.classifier.answer(images, first + query * self.draws.size)
            value = value + torch.from_numpy(goal.reached(answers, labels)).to(value) / QUERIES
        return value


def _selective(victim: Victim) -> SelectiveClassifier:
    if all(hasattr(victim, name) for name in ("class_scores", "answer", "threshold")):
        return cast(SelectiveClassifier, victim)
    raise UsageError(
        f"the adaptive attacks need a classifier that rejects; {type(victim).__name__} only gives logits",
        "Wrap the network in one of flss_edge.classifiers, and name that classifier as the victim.",
    )


def _towards(soft: SoftScores, objective: str, target: Tensor, name: str) -> ObjectiveEach:
    if objective == "score":
        scores = soft.log(name)
        return lambda images: _of(scores(images), target)
    if objective == "margin":
        # The margin over the runner-up: `margin` is the strongest other logit less the class's own.
        return per_image(soft.classifier, lambda logits, classes: -margin(logits, classes), target)
    if objective == "closed-form":
        return closed_form_objective(soft.classifier, target)
    if objective == "gate":
        return gate_objective(soft.classifier, target)
    raise UsageError(f"there is no objective {objective!r}", f"Use one of {', '.join(OBJECTIVES)}.")


def _untargeted(
    soft: SoftScores,
    raised: Callable[[Tensor], Tensor],
    images: Tensor,
    beginnings: list[Callable[[str], Tensor]],
    epsilon: float,
    steps: int,
) -> Iterator[Tensor]:
    for number, begin in enumerate(beginnings):
        name = f"untargeted {number}"
        scores = soft.log(name)
        objective = functools.partial(lambda scores, images: raised(scores(images)), scores)
        yield ascend(objective, images, begin(name), epsilon=epsilon, steps=steps)


def _beginnings(
    images: Tensor, draws: Draws, epsilon: float, restarts: int, starts: Sequence[Tensor]
) -> list[Callable[[str], Tensor]]:
    """Return functions from an ascent's name to where it begins."""

    def anywhere(name: str) -> Tensor:
        return uniform_start(images, draws.uniform(f"start {name}", *images.shape[1:]), epsilon).clamp(0, 1)

    given = [images][:restarts] + _inside(images, starts, epsilon)
    return [functools.partial(lambda start, name: start, start) for start in given] + [anywhere] * (restarts - 1)


def _inside(images: Tensor, starts: Sequence[Tensor], epsilon: float) -> list[Tensor]:
    lower, upper = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    return [torch.clamp(start, lower, upper) for start in starts]


def _of(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None])[:, 0]


def _largest_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.scatter(1, labels[:, None], -math.inf).max(dim=1).values


ACCEPTED_AND_WRONG = Goal(lambda answers, labels: answers.accepted & (answers.labels != labels), _largest_wrong)
WRONG = Goal(
    lambda answers, labels: answers.labels != labels,
    lambda scores, labels: (1 + margin(scores, labels)) / 2,
)
REJECTED = Goal(lambda answers, labels: ~answers.accepted, lambda scores, labels: 1 - scores.max(dim=1).values)

"""Auto-PGD: momentum, and step sizes that halve by themselves where the objective stops rising.

Source: Croce and Hein, ICML 2020 (AutoAttack). `ascend` is its schedule for any objective; the attacks are its three
uses there. Two things differ from the released code, both because a vote may break where the plain arg-max holds:
an image that is never flipped is returned at its best iterate, not unperturbed; and one that is misclassified without
any attack is attacked like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flss_edge.adversary import ObjectiveEach, spread, value_and_gradient
from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import (
    Loss,
    cross_entropy,
    dlr,
    margin,
    other_classes,
    over_draws,
    per_image,
    strongest,
    targeted_dlr,
)
from flss_edge.minibatch import Draws

Judgement = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> (B,) bool."""


def apgd_ce(
    victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws, steps: int = 100
) -> Tensor:
    """Attack the cross-entropy with Auto-PGD; of the iterates that flip the answer the one with the highest loss.

    Args:
        victim: what is attacked.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: radius in pixel units of [0, 1].
        draws: of this batch.
        steps: gradient steps.
    """
    objective, wrong = _judged(victim, cross_entropy, labels)
    start = full_uniform_start(images, draws, epsilon)
    return ascend(objective, images, start, epsilon=epsilon, steps=steps, keep=wrong)


def apgd_dlr(
    victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws, steps: int = 100
) -> Tensor:
    """Attack the difference of logits ratio with Auto-PGD; arguments as `apgd_ce`."""
    objective, wrong = _judged(victim, dlr, labels)
    start = full_uniform_start(images, draws, epsilon)
    return ascend(objective, images, start, epsilon=epsilon, steps=steps, keep=wrong)


def apgd_targeted(
    victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws, steps: int = 100, targets: int = 9
) -> Tensor:
    """Attack the targeted DLR of each of the clean image's likeliest other classes; the largest margin is kept.

    Arguments as `apgd_ce`, and `targets`, the number of classes aimed at; all others where there are fewer.
    """
    others = other_classes(victim, images, labels)[:, :targets]

    def run(place: int, target: Tensor) -> Tensor:
        objective, wrong = _judged(victim, targeted_dlr(target), labels)
        start = full_uniform_start(images, draws, epsilon, f"start {place}")
        return ascend(objective, images, start, epsilon=epsilon, steps=steps, keep=wrong)

    runs = (run(place, target) for place, target in enumerate(others.unbind(dim=1)))
    return strongest(runs, per_image(victim, margin, labels))


def ascend(
    objective: ObjectiveEach,
    images: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    steps: int,
    momentum: float = 0.75,
    rho: float = 0.75,
    keep: Judgement | None = None,
) -> Tensor:
    """Return, for each image, the iterate with the highest objective in the L-infinity ball and [0, 1].

    The step size starts at 2 epsilon. At every checkpoint an image halves it and goes back to its best iterate where
    at most rho of the steps since the last checkpoint rose, or where the best value and the step size are both those
    of the last checkpoint.

    Args:
        objective: images (B, 3, H, W) -> (B,), each value depending on its own image only.
        images: (B, 3, H, W) float in [0, 1], the centre of the ball.
        start: where to begin, the same shape; projected first.
        epsilon: radius in pixel units of [0, 1].
        steps: gradient steps; steps + 1 evaluations of the objective and its gradient.
        momentum: weight of the new step, in (0, 1]; the rest goes to the last one. The paper's alpha.
        rho: share of rising steps below which the size is halved.
        keep: which of the images are successes; any of those goes before any other iterate, whatever the objective.
            It is asked about an iterate right after the objective was, so it may use what was computed there.
    """
    lower, upper = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)

    def evaluate(point: Tensor) -> _Iterates:
        value, gradient = value_and_gradient(objective, point)
        return _Iterates(point, value, gradient, keep(point) if keep else torch.zeros_like(value, dtype=torch.bool))

    current = best = result = evaluate(torch.clamp(start, lower, upper))
    before = current.point
    schedule = StepSizes(current.value, 2 * epsilon, steps, rho)
    for step in range(1, steps + 1):
        weight = momentum if step > 1 else 1.0
        moved = torch.clamp(current.point + spread(schedule.sizes) * current.gradient.sign(), lower, upper)
        point = current.point + weight * (moved - current.point) + (1 - weight) * (current.point - before)
        before, last = current.point, current.value
        current = evaluate(torch.clamp(point, lower, upper))
        best = best.where(current.value > best.value, current)
        result = result.where(current.before(result), current)
        back = schedule.after(step, rose=current.value > last, best=best.value)
        if back is not None:
            current = current.where(back, best)
    return result.point


def checkpoints(steps: int) -> Iterator[int]:
    """Yield the steps after which step sizes are looked at: 22, 41, 57, 70, 80, 87, 93 and 99 of 100.

    The first interval is 22 % of the steps, every further one 3 % shorter, none below 6 %; rounded down, at least 1.
    """
    length, shrink, shortest = (max(percent * steps // 100, 1) for percent in (22, 3, 6))
    step = length
    while step <= steps:
        yield step
        length = max(length - shrink, shortest)
        step += length


def full_uniform_start(images: Tensor, draws: Draws, epsilon: float, name: str = "start") -> Tensor:
    """Return images + uniform noise that is scaled so that its largest value, in each image, is epsilon."""
    noise = 2 * draws.uniform(name, *images.shape[1:]) - 1
    return images + epsilon * noise / spread(noise.abs().amax(dim=(1, 2, 3)))


class _Iterates(NamedTuple):
    """One iterate an image: points (B, 3, H, W), values (B,), gradients like the points, successes (B,) bool."""

    point: Tensor
    value: Tensor
    gradient: Tensor
    success: Tensor

    def where(self, changed: Tensor, other: _Iterates) -> _Iterates:
        """Return these, with those of `other` where `changed` (B,) says so."""
        pairs = zip(other, self, strict=True)
        return _Iterates(*(torch.where(spread(changed) if a.dim() > 1 else changed, a, b) for a, b in pairs))

    def before(self, other: _Iterates) -> Tensor:
        """Return which of these are to be preferred: successes first, then the higher value."""
        return (self.success & ~other.success) | ((self.success == other.success) & (self.value > other.value))


class StepSizes:
    """The step size of each image, `sizes` (B,)."""

    def __init__(self, value: Tensor, size: float, steps: int, rho: float) -> None:
        self.sizes = torch.full_like(value, size)
        self.rho = rho
        self._checkpoints = set(checkpoints(steps))
        self._last_checkpoint, self._best_then = 0, value
        self._rises = torch.zeros_like(value)
        self._halved = torch.zeros_like(value, dtype=torch.bool)

    def after(self, step: int, *, rose: Tensor, best: Tensor) -> Tensor | None:
        """Take note of a step; at a checkpoint return which images (B,) halved their size and go back."""
        self._rises += rose
        if step not in self._checkpoints:
            return None
        # `<=` as in the released code; the paper has `<`
        few_rises = self._rises <= self.rho * (step - self._last_checkpoint)
        self._halved = few_rises | (~self._halved & (best <= self._best_then))
        self.sizes = torch.where(self._halved, self.sizes / 2, self.sizes)
        self._last_checkpoint, self._best_then = step, best
        self._rises = torch.zeros_like(self._rises)
        return self._halved


def _judged(victim: Victim, loss: Loss, labels: Tensor) -> tuple[ObjectiveEach, Judgement]:
    """Return the objective, and whether the logits it last computed give a wrong answer: one forward pass for both."""
    last: list[Tensor] = []

    def remembering(images: Tensor) -> Tensor:
        logits = victim(images)
        last[:] = [logits.detach()]
        return logits

    return per_image(remembering, loss, labels), lambda images: over_draws(margin(last[0], labels)) > 0

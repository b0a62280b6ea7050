"""FAB: the smallest L-infinity perturbation that changes the answer, by repeated projection onto linearised boundaries.

Source: Croce and Hein, ICML 2020 (Fast Adaptive Boundary attack); FAB-T from the same authors' AutoAttack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flss_edge.adversary import spread, value_and_gradient
from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import (
    margin,
    other_classes,
    over_draws,
    per_image,
    targeted_margin,
)
from flss_edge.minibatch import Draws

Boundary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (B, 3, H, W) -> how far a wrong class is ahead of the true one, (B,), and its gradient (B, 3, H, W)."""

FINAL_STEPS = 3
SMALLEST = 1e-12  # of what is divided by


def fab(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 100,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    restarts: int = 1,
) -> Tensor:
    """Return the closest adversarial image that FAB finds, steering for the nearest boundary of any class.

    An image that is wrong already is its own closest. Where nothing adversarial lies within epsilon, the closest one
    beyond, or else the first run's last iterate, is projected into the ball, so that a vote or a rejection still meets
    an attacked image. A random victim is attacked through the mean of its draws' logits.

    Args:
        victim: what is attacked; a step costs two forward passes and, for K classes, K - 1 backward passes.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers of the second start and those after it; the first start is the image itself.
        steps: of each start.
        alpha_max: most weight of the image's own projection, which keeps the search near the image.
        eta: overshoot beyond the boundary, at least 1.
        beta: what an adversarial iterate keeps of its perturbation in the next step, in (0, 1).
        restarts: starts in all.
    """
    settings = _Settings(steps, alpha_max, eta, beta, restarts)
    return _closest_within(epsilon, victim, images, labels, None, settings, draws)


def fab_targeted(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    targets: int = 9,
    steps: int = 100,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    restarts: int = 1,
) -> Tensor:
    """Return the closest adversarial image of FAB-T: one run for each of the likeliest wrong classes.

    Each run steers for one class but any wrong answer counts. A step costs two forward passes and one backward pass,
    whatever the number of classes.

    Args:
        victim: as for `fab`, like all that is not named here.
        images: as for `fab`.
        labels: as for `fab`.
        epsilon: as for `fab`.
        draws: as for `fab`.
        targets: how many wrong classes, by their logits at the image; at most all of them.
        steps: as for `fab`, of each start and target.
        alpha_max: as for `fab`.
        eta: as for `fab`.
        beta: as for `fab`.
        restarts: starts for each target; the first of each is the image itself.
    """
    settings = _Settings(steps, alpha_max, eta, beta, restarts)
    likeliest = other_classes(victim, images, labels)[:, :targets]
    return _closest_within(epsilon, victim, images, labels, likeliest, settings, draws)


def step_to_plane(points: Tensor, normal: Tensor, change: Tensor) -> Tensor:
    """Return the smallest steps d in the L-infinity norm with <normal, d> = change and points + d within [0, 1].

    The optimum moves every pixel by the same radius, or as far as it has room. What that changes is concave, piecewise
    linear and increasing in the radius, so Newton's method from radius 0 rises to the solution in finitely many steps;
    the paper sorts the pixels instead. Where the box holds no solution, every pixel moves as far as it has room.

    Args:
        points: (B, ...) float in [0, 1].
        normal: the same shape.
        change: (B,).
    """
    direction = torch.sign(normal.flatten(1) * change.sign()[:, None])
    flat, weights, wanted = points.flatten(1), normal.flatten(1).abs(), change.abs().nan_to_num()
    room = torch.where(direction > 0, 1 - flat, flat)
    radius, previous = torch.zeros_like(wanted), torch.full_like(wanted, -1)
    while not torch.equal(radius, previous):
        free = weights * (room > radius[:, None])
        slope, reached = free.sum(dim=1), ((weights - free) * room).sum(dim=1)
        solved = torch.where(slope > 0, (wanted - reached) / slope, 1)
        radius, previous = torch.maximum(radius, solved.clamp(max=1)), radius
    return (direction * torch.minimum(room, radius[:, None])).view_as(points)


@dataclass(frozen=True)
class _Closest:
    """The closest adversarial point found so far; at an infinite distance it is a mere fallback."""

    point: Tensor
    distance: Tensor

    def or_this(self, candidate: Tensor, distance: Tensor, wrong: Tensor) -> _Closest:
        closer = wrong & (distance < self.distance)
        point = torch.where(spread(closer), candidate, self.point)
        return _Closest(point, torch.where(closer, distance, self.distance))

    def or_fallback(self, point: Tensor) -> _Closest:
        return _Closest(torch.where(spread(self.distance.isinf()), point, self.point), self.distance)


@dataclass(frozen=True)
class _Settings:
    steps: int
    alpha_max: float
    eta: float
    beta: float
    restarts: int


@dataclass(frozen=True)
class _Run:
    victim: Victim
    images: Tensor
    labels: Tensor
    settings: _Settings

    def margins(self, points: Tensor) -> Tensor:
        """How far the likeliest wrong class is ahead, (B,)."""
        with torch.no_grad():
            return per_image(self.victim, margin, self.labels)(points)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The linearised boundary to the wrong class whose boundary is nearest to each point."""
        points = points.detach().requires_grad_(True)
        logits = self.victim(points)
        classes = logits.shape[-1]
        nearest = torch.full_like(points[:, 0, 0, 0], torch.inf)
        value, normal = torch.zeros_like(nearest), torch.zeros_like(points)
        for offset in range(1, classes):
            loss = targeted_margin((self.labels + offset) % classes)
            ahead = over_draws(loss(logits, self.labels))
            (gradient,) = torch.autograd.grad(ahead.sum(), points, retain_graph=offset < classes - 1)
            ahead = ahead.detach()
            distance = ahead.abs() / gradient.flatten(1).abs().sum(dim=1).clamp(min=SMALLEST)
            nearer = distance < nearest
            nearest, value = torch.where(nearer, distance, nearest), torch.where(nearer, ahead, value)
            normal = torch.where(spread(nearer), gradient, normal)
        return value, normal

    def boundary_to(self, target: Tensor) -> Boundary:
        """The linearised boundary to the class `target` (B,)."""
        objective = per_image(self.victim, targeted_margin(target), self.labels)
        return lambda points: value_and_gradient(objective, points)

    def descend(self, boundary: Boundary, start: Tensor, closest: _Closest) -> tuple[_Closest, Tensor]:
        """Return the closest point after a run from `start`, and the run's last iterate."""
        point = last = start
        for _ in range(self.settings.steps):
            last = self._step(boundary, point)
            wrong = self.margins(last) > 0
            closest = closest.or_this(last, _distance(last, self.images), wrong)
            point = torch.where(spread(wrong), self.images + self.settings.beta * (last - self.images), last)
        return closest, last

    def _step(self, boundary: Boundary, point: Tensor) -> Tensor:
        ahead, normal = boundary(point)
        ahead_at_image = ahead + (normal * (self.images - point)).flatten(1).sum(dim=1)
        from_point = step_to_plane(point, normal, -ahead)
        from_image = step_to_plane(self.images, normal, -ahead_at_image)
        near, far = (step.abs().amax(dim=(1, 2, 3)) for step in (from_point, from_image))
        alpha = spread((near / (near + far).clamp(min=SMALLEST)).clamp(max=self.settings.alpha_max))
        moved, anchored = point + self.settings.eta * from_point, self.images + self.settings.eta * from_image
        return ((1 - alpha) * moved + alpha * anchored).clamp_(0, 1)

    def refine(self, closest: _Closest) -> _Closest:
        """Return the closest point after the paper's final search between it and the image, by the secant rule."""
        away = torch.where(spread(closest.distance.isfinite()), closest.point - self.images, 0)
        inner, outer = torch.zeros_like(closest.distance), torch.ones_like(closest.distance)
        below, above = self.margins(self.images), self.margins(self.images + away)
        for _ in range(FINAL_STEPS):
            share = inner + (outer - inner) * (-below / (above - below).clamp(min=SMALLEST)).clamp(0, 1)
            candidate = self.images + spread(share) * away
            value = self.margins(candidate)
            wrong = value > 0
            closest = closest.or_this(candidate, _distance(candidate, self.images), wrong)
            inner, below = torch.where(wrong, inner, share), torch.where(wrong, below, value)
            outer, above = torch.where(wrong, share, outer), torch.where(wrong, value, above)
        return closest


def _closest_within(
    epsilon: float,
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    settings: _Settings,
    draws: Draws,
) -> Tensor:
    """Return each image's closest point, within the ball; `targets` (B, T) are steered for, None for the nearest."""
    with torch.no_grad():
        logits = victim(images)
    wrong = over_draws(margin(logits, labels)) > 0
    # A random victim's draws may belong to places in the batch, so it gets the whole batch.
    rows = (~wrong if logits.dim() == 2 else torch.ones_like(wrong)).nonzero()[:, 0]
    if len(rows) == 0:
        return images.clone()
    run = _Run(victim, images[rows], labels[rows], settings)
    boundaries = [run.nearest] if targets is None else [run.boundary_to(target) for target in targets[rows].unbind(1)]
    closest = _Closest(run.images, torch.zeros_like(run.images[:, 0, 0, 0]).masked_fill(~wrong[rows], torch.inf))
    for number in range(settings.restarts * len(boundaries)):
        start = run.images
        if number >= len(boundaries):
            numbers = draws.uniform(f"start {number}", *images.shape[1:])[rows]
            start = _random_start(run.images, closest.distance.clamp(max=epsilon) / 2, numbers)
        closest, last = run.descend(boundaries[number % len(boundaries)], start, closest)
        closest = closest.or_fallback(last) if number == 0 else closest
    point = images.clone()
    point[rows] = run.refine(closest).point
    return torch.clamp(point, (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1))


def _random_start(images: Tensor, radius: Tensor, numbers: Tensor) -> Tensor:
    direction = 2 * numbers.to(images.dtype) - 1
    return (images + spread(radius / direction.abs().amax(dim=(1, 2, 3))) * direction).clamp_(0, 1)


def _distance(points: Tensor, images: Tensor) -> Tensor:
    return (points - images).abs().amax(dim=(1, 2, 3))

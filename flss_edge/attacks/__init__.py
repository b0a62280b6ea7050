"""Attacks on classifiers: one function each, one signature for all.

Every attack takes the victim, images (B, 3, H, W) in [0, 1] and true labels (B,), and gives images of the same shape
inside the L-infinity ball of radius epsilon around them and inside [0, 1]. An image's result depends on that image
alone. All randomness comes from named draws, so an attack can be repeated, divided and resumed exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from flss_edge.minibatch import Draws

Victim: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> logits (B, K), or (S, B, K) from S draws of a random model; differentiable."""


class Attack(Protocol):
    """What every attack looks like once its own settings are bound."""

    def __call__(self, victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
        """Return (B, 3, H, W), within epsilon of the images and within [0, 1], without a gradient.

        Args:
            victim: what is attacked.
            images: (B, 3, H, W) float in [0, 1].
            labels: (B,) int64, the true classes.
            epsilon: radius in pixel units of [0, 1], >= 0.
            draws: this batch's random numbers.
        """
        ...


@dataclass(frozen=True)
class PlannedAttack:
    """One attack of a suite.

    Attributes:
        name: unique within an evaluation; it also names the random numbers.
        run: the attack with its settings bound.
        epsilon: radius in pixel units of [0, 1].
        victim: name of the selective classifier that is attacked; "" is the path without sampling.
        groups: names of the suites that it counts for.
        samples: random draws that each gradient averages over (EOT); 0 attacks the path without sampling.
        passes: forward and backward passes an image, roughly, at least 1; for the time left.
        starts: names of attacks before it, at whose images it begins too; `run` takes them as `starts`.
        bounded: whether the result lies in the ball; random corruptions do not.
    """

    name: str
    run: Attack
    epsilon: float
    victim: str = ""
    groups: tuple[str, ...] = ()
    samples: int = 0
    passes: int = 1
    starts: tuple[str, ...] = ()
    bounded: bool = True

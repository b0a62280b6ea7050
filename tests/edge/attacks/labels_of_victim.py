"""Labels that make every image right, for attacks that leave alone what is wrong."""

from __future__ import annotations

from torch import Tensor

from flss_edge.attacks import Attack, Victim
from flss_edge.attacks.objectives import over_draws
from flss_edge.minibatch import Draws


def against_the_answers(attack: Attack) -> Attack:
    """The same attack on what the victim answers, whatever the labels."""

    def attacked(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
        answers = over_draws(victim(images), dims=2).argmax(dim=-1)
        return attack(victim, images, answers, epsilon=epsilon, draws=draws)

    return attacked

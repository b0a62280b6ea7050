"""Forward and backward passes an image, of each attack with its published settings, derived by hand.

An entry is (a step, once): (9, 19) stands for 9 * steps + 19. Victims have ten classes, so nine targets.
"""

from __future__ import annotations

from typing import NamedTuple


class Passes(NamedTuple):
    """Passes an image: each (a step, once)."""

    forward: tuple[int, int]
    backward: tuple[int, int]

    def at(self, steps: int) -> tuple[int, int]:
        """(forward, backward) of an attack with that many steps."""
        forward, backward = self
        return forward[0] * steps + forward[1], backward[0] * steps + backward[1]


PASSES_WHITE_BOX = {
    # one gradient
    "fgsm": Passes((0, 1), (0, 1)),
    # a gradient a step; the last iterate is not looked at
    "pgd_attack": Passes((1, 0), (1, 0)),
    "pgd_cw": Passes((1, 0), (1, 0)),
    # ten times that, and ten ends whose margins are compared
    "pgd_restarts": Passes((10, 10), (10, 0)),
    # value and gradient at the start and after every step; whether the answer is wrong comes from the same pass
    "apgd_ce": Passes((1, 1), (1, 1)),
    "apgd_dlr": Passes((1, 1), (1, 1)),
    # the clean image for its targets; nine ascents; nine ends whose margins are compared
    "apgd_targeted": Passes((9, 1 + 9 + 9), (9, 9)),
    # the probabilities at the start, then a gradient a step
    "gama_pgd": Passes((1, 1), (1, 0)),
    # the clean image for its target besides
    "gama_mt": Passes((1, 2), (1, 0)),
}

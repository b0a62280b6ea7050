"""Transfer: images that fool another network, made without asking the victim anything."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from flss_edge.attacks import Attack, Victim
from flss_edge.attacks.gama import gama_pgd
from flss_edge.attacks.pgd import fgsm, pgd_attack
from flss_edge.minibatch import Draws
from flss_runtime.errors import UsageError

METHODS: dict[str, Attack] = {"fgsm": fgsm, "pgd-7": partial(pgd_attack, steps=7), "gama-pgd": gama_pgd}


def transfer(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    source: Victim,
    method: str = "gama-pgd",
) -> Tensor:
    """Attack `source` in place of the victim, and return what fools it.

    The paper's sources are a standard and an adversarially trained ResNet-18 and a VGG. Each source and method is an
    attack of its own.

    Args:
        victim: not used.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: radius in pixel units of [0, 1].
        draws: of this batch.
        source: the network that is attacked, in eval mode and on the images' device.
        method: "fgsm", "pgd-7" or "gama-pgd".

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"method is {method!r}", f"Use one of {', '.join(METHODS)}.")
    return METHODS[method](source, images, labels, epsilon=epsilon, draws=draws)

"""The feature-level attack: an image whose features are those of a guide image of another class.

Source: Sabour et al., ICLR 2016. The FLSS paper uses it against its encoder and leaves the settings open; steps and
distances here are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import frozen, pgd
from flss_edge.attacks import Victim
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS, Classifier, Network
from flss_runtime.errors import UsageError

POOL_BATCH = 250


class Features(NamedTuple):
    """What an encoder says of images: mean (B, D) and, of an FLSS network, log-variance (B, D)."""

    mean: Tensor
    logvar: Tensor | None


def feature_attack(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    guide_images: Tensor,
    guide_labels: Tensor,
    guide: str = "random",
    distance: str = "l2",
    steps: int = 100,
    step_size: float | None = None,
) -> Tensor:
    """Attack the encoder: bring each image's features as near as PGD can to those of a guide of another class.

    The last iterate of signed steps from the image itself is returned. The labels choose the guides and nothing else.

    Args:
        victim: an FLSS network, a plain classifier (its pooled features are the mean), or a selective classifier
            around one.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers that choose the guides.
        guide_images: (P, 3, H, W) float in [0, 1], the pool, at least one of another class for every image.
        guide_labels: (P,) int64.
        guide: "random" of the pool's images of other classes, or "nearest" in the Euclidean distance of the means.
        distance: "l2", "l1" or "cosine" of the means, "kl" from the guide's Gaussian to the image's, or "l2-both", the
            Euclidean distance of means and log-variances together.
        steps: gradient steps.
        step_size: in pixel units; None is epsilon / 4, the 2/255 of the paper's other attacks at 8/255.

    Raises:
        UsageError: unknown names, a victim without an encoder, a log-variance asked of a plain classifier, or a pool
            without another class.
    """
    network = _network_of(victim)
    _check(network, guide, distance)
    between = DISTANCES[distance]
    pool, pool_labels = guide_images.to(images), guide_labels.to(labels)
    with frozen(network):
        with torch.no_grad():
            chosen = _choose(network, images, labels, pool, pool_labels, guide, draws)
            target = features_of(network, pool[chosen])

        def objective(x: Tensor) -> Tensor:
            return -between(features_of(network, x), target).sum()

        size = epsilon / 4 if step_size is None else step_size
        return pgd(objective, images, images, epsilon=epsilon, step_size=size, steps=steps)


def features_of(network: Network, images: Tensor) -> Features:
    """Return the features of images (B, 3, H, W) float in [0, 1]."""
    if isinstance(network, FLSS):
        mean, logvar = network.encoder(images)
        return Features(mean, logvar)
    return Features(network.features(images), None)


def _l2(x: Features, y: Features) -> Tensor:
    return (x.mean - y.mean).square().sum(dim=1)  # its steps have the same signs as those of its root


def _l1(x: Features, y: Features) -> Tensor:
    return (x.mean - y.mean).abs().sum(dim=1)


def _cosine(x: Features, y: Features) -> Tensor:
    return 1 - functional.cosine_similarity(x.mean, y.mean, dim=1)


def _kl(x: Features, y: Features) -> Tensor:
    assert x.logvar is not None and y.logvar is not None
    ratio = ((x.mean - y.mean).square() + x.logvar.exp()) / y.logvar.exp()
    return 0.5 * (ratio - 1 - x.logvar + y.logvar).sum(dim=1)


def _l2_both(x: Features, y: Features) -> Tensor:
    assert x.logvar is not None and y.logvar is not None
    return _l2(x, y) + (x.logvar - y.logvar).square().sum(dim=1)


DISTANCES: dict[str, Callable[[Features, Features], Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "cosine": _cosine,
    "kl": _kl,
    "l2-both": _l2_both,
}
GAUSSIAN = ("kl", "l2-both")
GUIDES = ("random", "nearest")


def _network_of(victim: Victim) -> Network:
    network = getattr(victim, "network", victim)
    if not isinstance(network, FLSS | Classifier):
        raise UsageError(
            f"the feature-level attack needs an encoder; {type(victim).__name__} has none",
            "Attack an FLSS network or a plain classifier, or leave this attack out.",
        )
    return network


def _check(network: Network, guide: str, distance: str) -> None:
    if guide not in GUIDES:
        raise UsageError(f"guide is {guide!r}", f"Use one of {', '.join(GUIDES)}.")
    if distance not in DISTANCES:
        raise UsageError(f"distance is {distance!r}", f"Use one of {', '.join(DISTANCES)}.")
    if distance in GAUSSIAN and not isinstance(network, FLSS):
        others = ", ".join(name for name in DISTANCES if name not in GAUSSIAN)
        raise UsageError(f"distance {distance!r} needs a log-variance; a classifier has none", f"Use one of {others}.")


def _choose(
    network: Network, images: Tensor, labels: Tensor, pool: Tensor, pool_labels: Tensor, guide: str, draws: Draws
) -> Tensor:
    """Return the place of every image's guide in the pool, (B,)."""
    eligible = labels[:, None] != pool_labels
    counts = eligible.sum(dim=1)
    if bool((counts == 0).any()):
        raise UsageError("some images have no guide of another class", "Give guides of at least two classes.")
    if guide == "random":
        wanted = (draws.uniform("guide").to(counts.device) * counts).long()
        return (eligible.cumsum(dim=1) > wanted[:, None]).to(torch.uint8).argmax(dim=1)
    means = torch.cat([features_of(network, part).mean for part in torch.split(pool, POOL_BATCH)])
    distances = torch.cdist(features_of(network, images).mean, means)
    return distances.masked_fill(~eligible, torch.inf).argmin(dim=1)

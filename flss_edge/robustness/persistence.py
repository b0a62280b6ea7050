"""The persistent attacker: he sends an image again and again, until the noise is in his favour."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from flss_edge.classifiers.answers import BoolArray
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS
from flss_runtime.errors import UsageError

QUERIES = (1, 10, 100)


@dataclass(frozen=True)
class Queries:
    """What the attacker sends, query after query: his candidates in turn, each a little different if he jitters.

    Attributes:
        candidates: (A, B, 3, H, W), his A images for each of the B true ones; query q sends number q mod A.
        images: (B, 3, H, W) float in [0, 1], the true ones.
        epsilon: radius in pixel units of [0, 1]; a jittered candidate is projected to it and to [0, 1].
        jitter: size of the random sign that each pixel of each query gets, in the same units; 0 sends a candidate as it
            is. Against fresh noise that suffices; a classifier that gives the same image the same answer has to be sent
            other images, and a jitter that no 8-bit camera resolves is enough for those.
        draws: random signs of this batch.
    """

    candidates: Tensor
    images: Tensor
    epsilon: float
    draws: Draws
    jitter: float = 0.0

    def sent(self, query: int) -> Tensor:
        """Return the images (B, 3, H, W) of one query, counted from 0."""
        candidate = self.candidates[query % len(self.candidates)]
        if not self.jitter:
            return candidate
        signs = 2 * (self.draws.uniform(f"jitter {query}", *self.images.shape[1:]) < 0.5).to(candidate) - 1
        lower, upper = (self.images - self.epsilon).clamp(min=0), (self.images + self.epsilon).clamp(max=1)
        return torch.clamp(candidate + self.jitter * signs, lower, upper)


def fooled_within(
    classifier: SelectiveClassifier,
    candidates: Tensor,
    labels: Tensor,
    *,
    images: Tensor,
    epsilon: float,
    draws: Draws,
    first: int,
    queries: Sequence[int] = QUERIES,
    jitter: float = 0.0,
) -> BoolArray:
    """Return for which images an accepted and wrong answer comes within m queries, (len(queries), B) bool.

    Args:
        classifier: what is asked.
        candidates: (A, B, 3, H, W) or (B, 3, H, W), adversarial images that were found beforehand.
        labels: (B,) int64, the true classes.
        images: (B, 3, H, W), the images that were attacked; with epsilon, the ball that jittered queries stay in.
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers of this batch.
        first: noise counter of the first query's first image; query q of image i gets counter first + q * B + i.
        queries: the numbers m, each at least 1.
        jitter: as `Queries`.

    Raises:
        UsageError: the shapes do not fit, or a number of queries is below 1.
    """
    hits = accepted_and_wrong_answers(
        classifier,
        Queries(candidates[None] if candidates.dim() == 4 else candidates, images, epsilon, draws, jitter),
        labels,
        count=_most(queries),
        first=first,
    )
    ever = np.logical_or.accumulate(hits, axis=0)
    return np.stack([ever[m - 1] for m in queries])


def accepted_and_wrong_answers(
    classifier: SelectiveClassifier, queries: Queries, labels: Tensor, *, count: int, first: int
) -> BoolArray:
    """Return which of the first `count` queries were accepted and wrong, (count, B) bool; arguments as `fooled_within`.

    A classifier that votes with latent samples encodes a candidate once, however often it is sent.
    """
    if queries.candidates.shape[1:] != queries.images.shape or len(labels) != len(queries.images):
        raise UsageError(
            f"candidates {tuple(queries.candidates.shape)} and {len(labels)} labels do not fit images "
            f"{tuple(queries.images.shape)}",
            "Give the candidates of all images, in their order: (A, B, 3, H, W).",
        )
    truth = labels.cpu().numpy()
    send = queries.sent
    network = _latent_network(classifier)
    if network is not None and not queries.jitter:
        with torch.no_grad():
            encoded = [_encoded(network, candidate) for candidate in queries.candidates[:count]]
        classifier = replace(cast(Any, classifier), network=_from_encoded(network))
        send = lambda query: encoded[query % len(encoded)]  # noqa: E731
    hits = []
    for query in range(count):
        answers = classifier.answer(send(query), first + query * len(truth))
        hits.append(answers.accepted & (answers.labels != truth))
    return np.stack(hits)


def _latent_network(classifier: SelectiveClassifier) -> FLSS | None:
    """Return the network of a classifier whose answer depends on an image through its mean and variance only."""
    network = getattr(classifier, "network", None)
    return network if isinstance(network, FLSS) and hasattr(classifier, "noise_scale") else None


class _Split(nn.Module):
    """An encoder whose images are already encoded."""

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = encoded.chunk(2, dim=1)
        return mean, logvar


def _encoded(network: FLSS, images: Tensor) -> Tensor:
    """Return means and log-variances side by side, (B, 2 D)."""
    return torch.cat(network.encoder(images), dim=1)


def _from_encoded(network: FLSS) -> FLSS:
    """Return a network with the same head that takes what `_encoded` gives for its images."""
    shell = copy.copy(network)
    shell._modules = {**network._modules, "encoder": _Split()}
    return shell


def _most(queries: Sequence[int]) -> int:
    if not queries or min(queries) < 1:
        raise UsageError(f"queries are {tuple(queries)}", "Give at least one number of queries, each at least 1.")
    return max(queries)

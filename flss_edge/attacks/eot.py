"""Expectation over transformation: a random classifier as a victim with fresh draws in every call."""

from __future__ import annotations

from torch import Tensor

from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.minibatch import Draws


class ExpectationOverTransformation:
    """A victim that gives the logits (S, B, K) of S draws; every attack then follows the average gradient.

    Each call draws anew: with the same numbers again and again an attack would overfit them, as it would a defence with
    frozen noise. The draws are named by a counter, so a new wrapper around the same classifier and draws repeats an
    attack exactly; make one for each attack and batch.

    Source: Athalye et al., ICML 2018. The released FLSS evaluation averages its gradients with the noise at zero, which
    changes nothing.

    Attributes:
        classifier: the random classifier; a deterministic one answers with S = 1.
        samples: draws a call, at least 1.
        draws: random numbers of the batch that is attacked; every call is on all of its images.
        calls: how many there have been.
    """

    def __init__(self, classifier: SelectiveClassifier, samples: int, draws: Draws) -> None:
        self.classifier = classifier
        self.samples = samples
        self.draws = draws
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (S, B, K) of images (B, 3, H, W), differentiable."""
        self.calls += 1
        return self.classifier.sampled_logits(images, self.samples, self.draws, f"eot {self.calls}")

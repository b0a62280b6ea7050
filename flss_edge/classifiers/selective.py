"""The interface through which attacks and evaluations see every model: it answers, and it may decline to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from flss_edge.classifiers.answers import Answers
from flss_edge.minibatch import Draws

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self


class SelectiveClassifier(Protocol):
    """A network with a score for each answer, and a threshold below which there is none.

    Every network is in eval mode, and on the device of the images, by its owner. An instance never changes; a copy
    with another threshold shares the network.
    """

    @property
    def name(self) -> str:
        """Name in reports and plans, unique within an evaluation."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        ...

    @property
    def threshold(self) -> float:
        """An image is accepted iff its score is at least that; 0 accepts all."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 3, H, W) in [0, 1] without sampling, differentiable.

        That is what the paper's attacks see. Only a network with noise in its weights is random here, too: it draws
        from torch's global generator.
        """
        ...

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return the logits (S, B, K) of S draws of what is random in the classifier, differentiable.

        Args:
            images: (B, 3, H, W) float in [0, 1], those of the draws' rows.
            samples: S, at least 1. A classifier without randomness has S = 1, and one with fixed noise all that it
                has: whoever attacks it knows it.
            draws: random numbers of the batch.
            name: under which they are drawn.
        """
        ...

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return (B, K) in [0, 1], differentiable: a soft version of the score that each class would get as the answer.

        Args:
            images: as for `sampled_logits`, and the same for samples, draws and name.
            samples: to average over.
            draws: random numbers of the batch.
            name: under which they are drawn.
            temperature: above 0, divides the logits of a vote; towards 0 a soft vote becomes the share of the votes.
                Scores that are confidences do without.
        """
        ...

    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) in [0, 1], repeatably and without touching torch's global random state.

        Args:
            images: float; no gradient is computed.
            first: noise counter of the first image; image i has the noise number first + i of the classifier's seed,
                as in the runtime.
        """
        ...

    def with_threshold(self, threshold: float) -> Self:
        """Return this classifier with another threshold."""
        ...

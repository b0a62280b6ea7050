"""What is evaluated: the classifiers that checkpoints make, with thresholds frozen before any attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.of_checkpoint import calibrated, classifiers_of
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import MeanSoftmax, Vote
from flss_edge.data import ImageSet
from flss_edge.gate import gate_network
from flss_runtime.errors import CheckpointError, UsageError

WRONG_AND_REJECTED = ("accepted-wrong", "wrong-majority", "rejection")


@dataclass(frozen=True, eq=False)
class Subject:
    """Classifiers to evaluate together, because they share networks.

    Attributes:
        classifiers: calibrated, with different names; the first one's path without sampling is what the paper's
            attacks see.
        networks: all networks behind them.
        num_classes: K.
    """

    classifiers: Sequence[SelectiveClassifier]
    networks: Sequence[nn.Module]
    num_classes: int

    def named(self, name: str) -> SelectiveClassifier:
        """Return the classifier of that name.

        Raises:
            UsageError: there is none.
        """
        for classifier in self.classifiers:
            if classifier.name == name:
                return classifier
        raise UsageError(
            f"there is no classifier {name!r} here", f"there are {', '.join(each.name for each in self.classifiers)}"
        )

    def against(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the adaptive attacks on each named classifier; by default on the main ones and their control.

        Raises:
            UsageError: a classifier is unknown.
        """
        if not names:
            main = {"vote", "no-sampling", "cascade"} & {each.name for each in self.classifiers}
            names = [each.name for each in self.classifiers if each.name in main] or [self.classifiers[0].name]
        return {name: self._kinds(self.named(name)) for name in names}

    def _kinds(self, classifier: SelectiveClassifier) -> tuple[str, ...]:
        sampled = classifier.vote if isinstance(classifier, Cascade) else classifier
        closed = (
            isinstance(sampled, Vote | DeterministicVote | MeanSoftmax)
            and not sampled.network.config.hidden
            and sampled.noise_scale > 0
        )
        kinds = ("accepted-wrong", *(["accepted-wrong-closed"] if closed else []))
        if isinstance(classifier, Cascade):
            kinds += ("accepted-wrong-gate",)
        if kinds != WRONG_AND_REJECTED[:1]:
            return (*kinds, *WRONG_AND_REJECTED[1:])
        if isinstance(classifier, Confidence):
            return ("accepted-wrong", "accepted-wrong-margin", *WRONG_AND_REJECTED[1:])
        return WRONG_AND_REJECTED


def subject_of(
    checkpoint: Checkpoint,
    calibration: ImageSet,
    *,
    budget: float,
    num_samples: int,
    noise_scale: float,
    seed: int,
    device: torch.device,
    gate: Checkpoint | None = None,
) -> Subject:
    """Make and calibrate the classifiers of a checkpoint.

    Args:
        checkpoint: of any recipe.
        calibration: images that neither trained the network nor are evaluated; they freeze every threshold.
        budget: share of all calibration images that may be classified correctly and yet rejected, in (0, 1).
        num_samples: votes an image.
        noise_scale: factor on the standard deviation of the latents.
        seed: of the noise.
        device: where the networks go.
        gate: a confidence-calibrated (CCAT) checkpoint: adds the cascade of both.

    Raises:
        CheckpointError: the gate does not fit, see `flss_edge.gate`, or the checkpoint cannot vote behind one.
        DataError: the budget allows nothing on so few images.
    """
    networks: list[nn.Module] = [checkpoint.model.to(device).eval()]
    made = classifiers_of(checkpoint, num_samples=num_samples, noise_scale=noise_scale, seed=seed)
    classifiers = list(calibrated(made, calibration, budget, device))
    if gate is not None:
        checkpoint.flss()
        networks.append(gate_network(gate, checkpoint).to(device).eval())
        gates = calibrated(
            classifiers_of(gate, num_samples=num_samples, noise_scale=noise_scale, seed=seed),
            calibration,
            budget,
            device,
        )
        opening = next((each for each in gates if each.name == "ccat-1" and isinstance(each, Confidence)), None)
        vote = next(each for each in classifiers if isinstance(each, Vote) and each.name == "vote")
        if opening is None:
            raise CheckpointError("the gate was not trained with recipe ccat", "train one with --recipe ccat")
        classifiers += [Cascade(opening, vote), opening]
    return Subject(classifiers, networks, checkpoint.model.config.num_classes)

"""Which classifiers a checkpoint gets evaluated as, and how their thresholds are frozen."""

from __future__ import annotations

from dataclasses import replace

import torch

from flss_edge.augment import to_float
from flss_edge.checkpoint import Checkpoint
from flss_edge.classifiers.answers import (
    Answers,
    joined,
    threshold_for_budget,
    threshold_for_coverage,
    threshold_for_true_positive_rate,
)
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.pixel_noise import PixelNoiseVote, Smoothing
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import MeanSoftmax, Vote
from flss_edge.data import ImageSet
from flss_edge.model import FLSS

VOTE, NO_SAMPLING, MATCHED = "vote", "no-sampling", "no-sampling-matched"
CCAT_OWN, CCAT_BUDGET = "ccat-1", "ccat-10"
BATCH = 250


def classifiers_of(
    checkpoint: Checkpoint, *, num_samples: int = 100, noise_scale: float = 2.0, seed: int = 0
) -> list[SelectiveClassifier]:
    """Return what a checkpoint's recipe is evaluated as, accepting everything; they share its network.

    - FLSS: vote, vote-fixed, deterministic-vote (of a linear head), mean-softmax, no-sampling
    - randomized smoothing: smoothing at the sigma of its training, confidence
    - CCAT: ccat-1 and ccat-10, which differ in their calibration
    - PNI: confidence
    - any other plain classifier: confidence, pixel-noise-vote

    Args:
        checkpoint: its network is in eval mode, and moved to a device by the caller.
        num_samples: of every vote.
        noise_scale: of FLSS's latent samples.
        seed: of all noise.
    """
    network = checkpoint.model
    if isinstance(network, FLSS):
        return _of_flss(network, num_samples, noise_scale, seed)
    settings = checkpoint.training.get("config", {})
    recipe = settings.get("recipe")
    if recipe == "ccat":
        return [Confidence(network, CCAT_OWN), Confidence(network, CCAT_BUDGET)]
    confidence = Confidence(network, seed=seed)
    if network.config.weight_noise:
        return [confidence]
    if recipe in ("rs", "rs-trades"):
        return [Smoothing(network, num_samples=num_samples, seed=seed, sigma=settings["sigma"]), confidence]
    return [confidence, PixelNoiseVote(network, num_samples=num_samples, seed=seed)]


def _of_flss(network: FLSS, num_samples: int, noise_scale: float, seed: int) -> list[SelectiveClassifier]:
    vote = Vote(network, VOTE, num_samples, noise_scale, seed=seed)
    linear = not network.config.hidden
    return [
        vote,
        replace(vote, name="vote-fixed", noise="fixed"),
        *([DeterministicVote(network, num_samples=num_samples, noise_scale=noise_scale)] if linear else []),
        MeanSoftmax(network, num_samples=num_samples, noise_scale=noise_scale, seed=seed),
        Confidence(network, NO_SAMPLING),
    ]


def calibrated(
    classifiers: list[SelectiveClassifier], images: ImageSet, budget: float, device: torch.device
) -> list[SelectiveClassifier]:
    """Return the classifiers with their thresholds frozen, each by its own rule, and the control of the vote.

    - ccat-1 keeps 99 % of its correct answers
    - randomized smoothing keeps the level of its test, and a cascade the thresholds of its parts
    - all others may reject `budget` of all images although they classify them correctly

    The control, no-sampling-matched, is no-sampling with the threshold at which it answers as many of these images as
    the vote does: where the vote does no better than that, the samples bought nothing.

    Args:
        classifiers: of one checkpoint or several.
        images: labelled, clean, and used neither for training nor for what is reported.
        budget: share of all images, in (0, 1).
        device: of the networks.

    Raises:
        UsageError: the budget is not in (0, 1).
        DataError: the images are too few, or ccat-1 classifies none correctly.
    """
    frozen: list[SelectiveClassifier] = []
    votes: dict[FLSS, int] = {}  # network -> images that its vote answers
    for classifier in classifiers:
        answers = answers_to(classifier, images, device)
        frozen.append(classifier.with_threshold(_threshold(classifier, answers, images, budget)))
        if isinstance(classifier, Vote) and classifier.name == VOTE:
            votes[classifier.network] = int((answers.scores >= frozen[-1].threshold).sum())
    for network, accepted_count in votes.items():
        control = Confidence(network, MATCHED)
        scores = answers_to(control, images, device).scores
        frozen.append(control.with_threshold(threshold_for_coverage(scores, accepted_count)))
    return frozen


def answers_to(classifier: SelectiveClassifier, images: ImageSet, device: torch.device) -> Answers:
    """Return the answers to a set of images, which have the noise counters 0, 1, 2, and so on."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images.images[start : start + BATCH]).permute(0, 3, 1, 2).to(device)
        parts.append(classifier.answer(to_float(batch), start))
    return joined(parts)


def _threshold(classifier: SelectiveClassifier, answers: Answers, images: ImageSet, budget: float) -> float:
    correct = answers.labels == images.labels
    if isinstance(classifier, (Smoothing, Cascade)):
        return classifier.threshold
    if classifier.name == CCAT_OWN:
        return threshold_for_true_positive_rate(answers.scores, correct)
    highest = float(classifier.num_samples) if isinstance(classifier, Vote | DeterministicVote) else None
    return threshold_for_budget(answers.scores, correct, budget, highest)

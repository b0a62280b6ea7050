"""Which classifiers a checkpoint becomes, and how their thresholds are frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flss_edge.checkpoint import Checkpoint
from flss_edge.classifiers.answers import threshold_for_budget, threshold_for_true_positive_rate
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.of_checkpoint import answers_to, calibrated, classifiers_of
from flss_edge.classifiers.pixel_noise import Smoothing
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import Vote
from flss_edge.data import ImageSet
from flss_edge.model import Network
from flss_edge.recipes import RECIPES
from flss_runtime.calibration import min_votes_for_budget
from flss_runtime.errors import DataError

from .conftest import MakeFLSS, MakePlain

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cow", "dog", "eel")
FLSS_NAMES = ["vote", "vote-fixed", "deterministic-vote", "mean-softmax", "no-sampling"]
OF_RECIPE = {
    "standard": ["confidence", "pixel-noise-vote"],
    "pgd-at": ["confidence", "pixel-noise-vote"],
    "at-awp": ["confidence", "pixel-noise-vote"],
    "trades": ["confidence", "pixel-noise-vote"],
    "trades-awp": ["confidence", "pixel-noise-vote"],
    "rs": ["smoothing", "confidence"],
    "rs-trades": ["smoothing", "confidence"],
    "ccat": ["ccat-1", "ccat-10"],
    "pni": ["confidence"],
    "official": FLSS_NAMES,
    "paper": FLSS_NAMES,
    "plus": FLSS_NAMES,
}


def checkpoint_of(network: Network, recipe: str, **settings: object) -> Checkpoint:
    return Checkpoint(network, NAMES, training={"config": {"recipe": recipe, **settings}})


@pytest.fixture(scope="module")
def labelled(make_flss: MakeFLSS, make_plain: MakePlain) -> ImageSet:
    """300 images with the labels that the two networks give them, a third of them altered."""
    random = np.random.default_rng(0)
    contrasts = random.random((300, 1, 1, 3))  # mere noise would look all the same to the networks
    pixels = (random.integers(0, 256, (300, 16, 16, 3)) * contrasts).astype(np.uint8)
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = torch.where(
            torch.arange(300) % 2 == 0, make_flss()(tensors).argmax(1), make_plain()(tensors).argmax(1)
        )
    labels = np.where(random.random(300) < 0.3, random.integers(0, 5, 300), labels.numpy())
    return ImageSet(pixels, labels, NAMES, "random")


def by_name(classifiers: list[SelectiveClassifier]) -> dict[str, SelectiveClassifier]:
    named = {classifier.name: classifier for classifier in classifiers}
    assert len(named) == len(classifiers)
    return named


def test_every_recipe_has_its_classifiers(make_flss: MakeFLSS, make_plain: MakePlain) -> None:
    assert OF_RECIPE.keys() == RECIPES.keys()
    for recipe, expected in OF_RECIPE.items():
        if expected == FLSS_NAMES:
            network: Network = make_flss()
        else:
            network = make_plain(weight_noise=recipe == "pni")
        made = classifiers_of(checkpoint_of(network, recipe, sigma=0.12), num_samples=7, noise_scale=1.5, seed=2)
        assert [classifier.name for classifier in made] == expected
        for classifier in made:
            assert getattr(classifier, "num_samples", 7) == 7 and getattr(classifier, "noise_scale", 1.5) == 1.5
            if isinstance(classifier, Smoothing):
                assert classifier.sigma == 0.12 and classifier.threshold == 0.999


def test_without_a_record_the_network_decides(make_flss: MakeFLSS, make_plain: MakePlain) -> None:
    def names(network: Network) -> list[str]:
        return [classifier.name for classifier in classifiers_of(Checkpoint(network, NAMES))]

    assert names(make_flss()) == FLSS_NAMES
    assert names(make_flss(hidden=(12,))) == [name for name in FLSS_NAMES if name != "deterministic-vote"]
    assert names(make_plain()) == ["confidence", "pixel-noise-vote"]


def test_noise_counters_go_on_from_batch_to_batch(make_flss: MakeFLSS, labelled: ImageSet) -> None:
    vote = Vote(make_flss(), num_samples=40)
    tensors = torch.from_numpy(labelled.images).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_array_equal(answers_to(vote, labelled, CPU).scores, vote.answer(tensors, 0).scores)


class TestCalibration:
    def test_flss(self, make_flss: MakeFLSS, labelled: ImageSet) -> None:
        made = classifiers_of(checkpoint_of(make_flss(), "official"), num_samples=40, seed=3)
        frozen = calibrated(made, labelled, 0.1, CPU)
        assert [classifier.name for classifier in frozen] == [*FLSS_NAMES, "no-sampling-matched"]
        for before, after in zip(made, frozen, strict=False):
            answers = answers_to(before, labelled, CPU)
            correct = answers.labels == labelled.labels
            assert after.threshold == threshold_for_budget(answers.scores, correct, 0.1)
            rejected = correct & ~answers_to(after, labelled, CPU).accepted
            assert 0 < rejected.sum() <= 30, (after.name, answers.scores)
            if isinstance(after, Vote):
                votes = answers.scores.astype(np.int64)
                assert after.threshold == min_votes_for_budget(votes, correct, 40, 0.1)

    def test_the_control_answers_as_many_images_as_the_vote(self, make_flss: MakeFLSS, labelled: ImageSet) -> None:
        frozen = by_name(calibrated(classifiers_of(checkpoint_of(make_flss(), "official")), labelled, 0.1, CPU))
        vote, control = frozen["vote"], frozen["no-sampling-matched"]
        assert isinstance(vote, Vote) and isinstance(control, Confidence) and control.network is vote.network
        accepted = answers_to(vote, labelled, CPU).accepted.sum()
        assert 0 < accepted < 300
        assert answers_to(control, labelled, CPU).accepted.sum() == accepted

    def test_ccat_has_two_rules(self, make_plain: MakePlain, labelled: ImageSet) -> None:
        frozen = by_name(calibrated(classifiers_of(checkpoint_of(make_plain(), "ccat")), labelled, 0.1, CPU))
        answers = answers_to(Confidence(make_plain()), labelled, CPU)
        correct = answers.labels == labelled.labels
        assert frozen["ccat-1"].threshold == threshold_for_true_positive_rate(answers.scores, correct, 0.99)
        assert frozen["ccat-10"].threshold == threshold_for_budget(answers.scores, correct, 0.1)
        assert frozen["ccat-1"].threshold < frozen["ccat-10"].threshold

    def test_a_test_and_a_cascade_keep_their_thresholds(
        self, make_flss: MakeFLSS, make_plain: MakePlain, labelled: ImageSet
    ) -> None:
        vote = Vote(make_flss(), num_samples=20, threshold=7)
        cascade = Cascade(Confidence(make_plain(), threshold=0.4), vote)
        kept = calibrated([Smoothing(make_plain(), num_samples=10), cascade], labelled, 0.1, CPU)
        assert [classifier.threshold for classifier in kept] == [0.999, 7]

    def test_a_network_that_is_hardly_ever_right(self, make_flss: MakeFLSS, labelled: ImageSet) -> None:
        vote = Vote(make_flss(), num_samples=20)
        rare = np.bincount(answers_to(vote, labelled, CPU).labels, minlength=5).argmin()
        wrong = ImageSet(labelled.images, np.full(300, rare), NAMES, "wrong")
        assert calibrated([vote], wrong, 0.1, CPU)[0].threshold == 20  # as the runtime: at most all the votes

    def test_too_few_images(self, make_plain: MakePlain, labelled: ImageSet) -> None:
        few = labelled.take(np.arange(5), "few")
        with pytest.raises(DataError, match="no false rejection"):
            calibrated([Confidence(make_plain())], few, 0.1, CPU)

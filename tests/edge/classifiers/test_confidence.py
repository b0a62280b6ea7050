"""Confidence without sampling, and a network with noise in its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.classifiers.confidence import Confidence

from .conftest import DrawsOf, MakeFLSS, MakePlain


def test_answers_with_the_most_probable_class(make_plain: MakePlain, images: Tensor) -> None:
    network = make_plain()
    with torch.no_grad():
        probabilities = network(images).double().softmax(dim=1)
    middle = float(probabilities.max(dim=1).values.median())
    answers = Confidence(network, threshold=middle).answer(images, 0)
    np.testing.assert_array_equal(answers.labels, probabilities.argmax(dim=1))
    np.testing.assert_allclose(answers.scores, probabilities.max(dim=1).values, rtol=1e-12)
    assert 0 < answers.accepted.sum() < 6
    np.testing.assert_array_equal(answers.accepted, answers.scores >= middle)


def test_scores_near_one_still_differ(make_plain: MakePlain, images: Tensor) -> None:
    network = make_plain()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([20.0, 0, 0, 0, 0]))
    (surer,) = set(Confidence(network).answer(images, 0).scores)
    with torch.no_grad():
        network.fc.bias[0] = 19.0
    (sure,) = set(Confidence(network).answer(images, 0).scores)
    assert 1 - 1e-7 < sure < surer < 1  # all of them 1 in float32


def test_ties_go_to_the_lowest_class(make_plain: MakePlain, images: Tensor) -> None:
    network = make_plain()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([0.0, 1, 0, 1, 1]))
    assert Confidence(network).answer(images, 0).labels.tolist() == [1] * 6


def test_flss_without_sampling_is_its_mean_path(make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf) -> None:
    network = make_flss()
    classifier = Confidence(network, "no-sampling")
    with torch.no_grad():
        mean, _ = network.encoder(images)
        logits = network.head(mean)
    np.testing.assert_array_equal(classifier.answer(images, 3).labels, logits.argmax(dim=1))
    sampled = classifier.sampled_logits(images, 9, draws_of(), "x")
    assert sampled.shape == (1, 6, 5)
    torch.testing.assert_close(sampled[0], logits)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_soft_scores_are_the_probabilities(
    temperature: float, make_plain: MakePlain, images: Tensor, draws_of: DrawsOf
) -> None:
    classifier = Confidence(make_plain())
    scores = classifier.class_scores(images, 4, draws_of(), "x", temperature)
    torch.testing.assert_close(scores, classifier(images).softmax(dim=1))
    np.testing.assert_allclose(scores.detach().max(dim=1).values, classifier.answer(images, 0).scores, rtol=1e-5)


class TestWeightNoise:
    def test_answers_repeat_and_the_counter_chooses_the_noise(self, make_plain: MakePlain, images: Tensor) -> None:
        classifier = Confidence(make_plain(weight_noise=True), seed=4)
        first = classifier.answer(images, 0)
        torch.rand(5)  # whatever happens to the global generator in between
        np.testing.assert_array_equal(classifier.answer(images, 0).scores, first.scores)
        assert not np.array_equal(classifier.answer(images, 6).scores, first.scores)
        other = Confidence(classifier.network, seed=5)
        assert not np.array_equal(other.answer(images, 0).scores, first.scores)

    def test_draws_are_real_and_independent_of_the_division(
        self, make_plain: MakePlain, images: Tensor, draws_of: DrawsOf
    ) -> None:
        classifier = Confidence(make_plain(weight_noise=True))
        logits = classifier.sampled_logits(images, 3, draws_of(), "x")
        assert logits.shape == (3, 6, 5)
        assert not torch.allclose(logits[0], logits[1])
        torch.testing.assert_close(classifier.sampled_logits(images, 3, draws_of(), "x"), logits)
        part = classifier.sampled_logits(images[2:4], 3, draws_of(rows=slice(2, 4)), "x")
        torch.testing.assert_close(part, logits[:, 2:4], rtol=1e-4, atol=1e-5)

    def test_the_path_without_sampling_is_random_too(self, make_plain: MakePlain, images: Tensor) -> None:
        classifier = Confidence(make_plain(weight_noise=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            assert not torch.allclose(classifier(images), classifier(images))

"""The closed form of a linear head, and the vote that needs no chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.classifiers.deterministic import DeterministicVote, logit_gaussian, win_probability
from flss_edge.classifiers.latent_sampling import head_logits
from flss_edge.model import FLSS
from flss_runtime.errors import UsageError
from flss_runtime.point_set import PointSetSampling

from .conftest import DrawsOf, MakeFLSS

SAMPLES = 100_000
POINTS = 1024
SHARE_ERROR = 0.025  # of so many points


def sampled(network: FLSS, images: Tensor, noise_scale: float) -> Tensor:
    """Logits (B, SAMPLES, K) of random latents."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, SAMPLES, network.config.features, generator=generator)
    with torch.no_grad():
        mean, logvar = network.encoder(images)
        return head_logits(network.head, mean, noise_scale * torch.exp(0.5 * logvar), noise)


def shares(classifier: DeterministicVote, images: Tensor, draws_of: DrawsOf) -> Tensor:
    with torch.no_grad():
        logits = classifier.sampled_logits(images, 1, draws_of(), "x")
    return functional.one_hot(logits.argmax(dim=2), classifier.num_classes).double().mean(dim=0)


@pytest.mark.parametrize("noise_scale", [0.5, 2.0])
def test_win_probability_against_sampled_votes(noise_scale: float, make_flss: MakeFLSS, images: Tensor) -> None:
    network = make_flss()
    logits = sampled(network, images[:3], noise_scale)
    wins = (logits[:, :, :, None] > logits[:, :, None]).double().mean(dim=1)  # (B, K, K)
    with torch.no_grad():
        probability = win_probability(network, images[:3], noise_scale)
    apart = ~torch.eye(5, dtype=torch.bool).expand(3, 5, 5)
    deviation = (probability * (1 - probability) / SAMPLES).sqrt()[apart]
    assert ((wins - probability)[apart].abs() <= 4 * deviation + 1e-9).all()
    assert (probability[~apart] == 0.5).all()
    assert ((probability[apart] > 0.05) & (probability[apart] < 0.95)).any()


def test_win_probability_has_finite_gradients(make_flss: MakeFLSS, images: Tensor) -> None:
    network = make_flss()
    with torch.no_grad():
        network.head[0].weight[3] = network.head[0].weight[1]  # two classes that never part
    pixels = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(win_probability(network, pixels, 2.0)[:, 0].sum(), pixels)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_shares_against_sampled_votes(classes: int, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf) -> None:
    network = make_flss(num_classes=classes)
    votes = sampled(network, images, 2.0).argmax(dim=2)
    expected = functional.one_hot(votes, classes).double().mean(dim=1)
    found = shares(DeterministicVote(network, num_samples=POINTS), images, draws_of)
    assert (found - expected).abs().max() <= SHARE_ERROR
    assert ((expected > 0.1) & (expected < 0.9)).any()


def test_two_classes_are_exact(make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf) -> None:
    network = make_flss(num_classes=2)
    found = shares(DeterministicVote(network, num_samples=POINTS), images, draws_of)[:, 0]
    with torch.no_grad():
        expected = win_probability(network, images, 2.0)[:, 0, 1]
    assert (found - expected).abs().max() <= 2 / POINTS  # one dimension: a point a cell
    assert ((expected > 0.05) & (expected < 0.95)).any()


def test_pairs_of_many_classes_win_as_in_the_closed_form(
    make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
) -> None:
    network = make_flss(num_classes=7)
    with torch.no_grad():
        logits = DeterministicVote(network, num_samples=POINTS).sampled_logits(images, 1, draws_of(), "x")
        expected = win_probability(network, images, 2.0)
    wins = (logits[:, :, :, None] > logits[:, :, None]).double().mean(dim=0)
    apart = ~torch.eye(7, dtype=torch.bool).expand(6, 7, 7)
    assert (wins - expected)[apart].abs().max() <= SHARE_ERROR


class TestRepeatability:
    def test_an_image_has_one_answer(self, make_flss: MakeFLSS, images: Tensor) -> None:
        classifier = DeterministicVote(make_flss(), num_samples=POINTS)
        whole = classifier.answer(images, 0)
        for row in range(6):
            alone = classifier.answer(images[row : row + 1], 1234)
            assert alone.labels[0] == whole.labels[row]
            assert alone.scores[0] == pytest.approx(whole.scores[row], abs=1)  # a point on an edge may round

    def test_long_batches_are_divided(
        self, make_flss: MakeFLSS, images: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        classifier = DeterministicVote(make_flss(), num_samples=POINTS)
        whole = classifier.answer(images, 0)
        monkeypatch.setattr("flss_edge.classifiers.deterministic.VALUES", 4 * 1024 * 5)
        parts = classifier.answer(images, 0)
        np.testing.assert_array_equal(parts.labels, whole.labels)
        np.testing.assert_allclose(parts.scores, whole.scores, atol=1)


class TestSingular:
    def test_more_classes_than_latents(self, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf) -> None:
        network = make_flss(num_classes=8, latent_dim=3)
        votes = sampled(network, images, 2.0).argmax(dim=2)
        expected = functional.one_hot(votes, 8).double().mean(dim=1)
        classifier = DeterministicVote(network, num_samples=POINTS)
        assert (shares(classifier, images, draws_of) - expected).abs().max() <= SHARE_ERROR
        self._has_finite_gradient(classifier, images, draws_of)

    @pytest.mark.parametrize("noise_scale", [0.0, 2.0])
    def test_hardly_any_noise(self, noise_scale: float, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf) -> None:
        network = make_flss()
        if noise_scale:
            with torch.no_grad():
                network.encoder.logvar.bias.fill_(-60)
        classifier = DeterministicVote(network, noise_scale=noise_scale)
        answers = classifier.answer(images, 0)
        np.testing.assert_array_equal(answers.labels, network(images).argmax(dim=1))
        assert (answers.scores == classifier.num_samples).all()
        self._has_finite_gradient(classifier, images, draws_of)

    def _has_finite_gradient(self, classifier: DeterministicVote, images: Tensor, draws_of: DrawsOf) -> None:
        pixels = images.clone().requires_grad_(True)
        scores = classifier.class_scores(pixels, 1, draws_of(), "x", 0.1)
        (gradient,) = torch.autograd.grad(scores[:, 1].sum(), pixels)
        assert torch.isfinite(gradient).all()


def test_the_soft_share_has_the_gradient_of_mean_and_deviation(
    make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
) -> None:
    classifier = DeterministicVote(make_flss().double(), num_samples=256)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def total(pixels: Tensor) -> Tensor:
        return classifier.class_scores(pixels, 1, draws_of(), "x", 0.5)[:, 2].sum()

    pixels = images.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(pixels), pixels)
    step = 1e-6
    with torch.no_grad():
        expected = float(total(pixels + step * direction) - total(pixels - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_scores_are_votes_and_thresholds_are_too(make_flss: MakeFLSS, images: Tensor) -> None:
    classifier = DeterministicVote(make_flss())
    scores = classifier.answer(images, 0).scores
    assert (scores == scores.round()).all() and 10 < scores.min() < scores.max() <= 100
    for threshold in np.unique(scores):  # as calibration chooses them
        answers = classifier.with_threshold(float(threshold)).answer(images, 0)
        np.testing.assert_array_equal(answers.accepted, scores >= threshold)


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_attacked_logits_are_those_that_vote(
    classes: int, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
) -> None:
    """Gradients pass through torch's copy of the sampling; answers come from the runtime's."""
    network = make_flss(num_classes=classes)
    classifier = DeterministicVote(network)
    with torch.no_grad():
        attacked = classifier.sampled_logits(images, 1, draws_of(), "x").transpose(0, 1).numpy()
        mean_logits, covariance = (part.float().numpy() for part in logit_gaussian(network, images))
    voting, choices = PointSetSampling(100, classes).draw(mean_logits, covariance, 2.0)
    np.testing.assert_allclose(attacked, voting, atol=1e-4 * np.abs(voting).max())
    two = np.sort(voting, axis=2)[:, :, -2:]
    clear = two[:, :, 1] - two[:, :, 0] > 2e-4 * np.abs(voting).max()
    assert clear.mean() > 0.99 and len(np.unique(choices)) > 1
    np.testing.assert_array_equal(attacked.argmax(axis=2)[clear], choices[clear])


def test_refuses_a_hidden_layer(make_flss: MakeFLSS, images: Tensor) -> None:
    with pytest.raises(UsageError, match="1 hidden layers"):
        DeterministicVote(make_flss(hidden=(12,)))
    with pytest.raises(UsageError, match="hidden layers"):
        win_probability(make_flss(hidden=(12,)), images, 2.0)

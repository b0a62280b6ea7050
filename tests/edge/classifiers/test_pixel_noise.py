"""Votes over noisy copies, and the test of randomized smoothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from flss_edge.classifiers.pixel_noise import PixelNoiseVote, PixelSampling, Smoothing, two_sided_p

from .conftest import DrawsOf, MakePlain


class Recorder(nn.Module):
    """A network that remembers what it was shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.network(images)
        return logits


def test_p_values_equal_scipys() -> None:
    pairs = [(first, second) for first in range(41) for second in range(41) if first + second]
    pairs += [(100, 0), (58, 42), (500, 430), (1000, 0)]
    for first, second in pairs:
        expected = binomtest(first, first + second, 0.5).pvalue
        assert two_sided_p(first, second) == pytest.approx(expected, rel=1e-9), (first, second)


def test_the_noise_of_an_image_depends_on_its_counter_only(make_plain: MakePlain, images: Tensor) -> None:
    for kind in (PixelNoiseVote, Smoothing):
        recorder = Recorder(make_plain())
        classifier = kind(recorder, num_samples=3)
        classifier.answer(images, 40)
        shown = torch.cat(recorder.seen)
        for row in range(6):
            recorder.seen.clear()
            classifier.answer(images[row : row + 1], 40 + row)
            torch.testing.assert_close(torch.cat(recorder.seen), shown[3 * row : 3 * row + 3], rtol=0, atol=0)
        noise = shown - images.repeat_interleave(3, dim=0)
        assert len(noise.flatten(1).round(decimals=5).unique(dim=0)) == 18  # all copies of all images differ


def test_copies_in_parts_vote_the_same(make_plain: MakePlain, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = PixelNoiseVote(make_plain(), num_samples=20)
    whole = classifier._choices(images, 0)
    monkeypatch.setattr("flss_edge.classifiers.pixel_noise.COPIES", 7)
    np.testing.assert_array_equal(classifier._choices(images, 0), whole)


@pytest.mark.parametrize("kind", [PixelNoiseVote, Smoothing])
def test_the_noise_is_as_stated_and_not_clipped(kind: type[PixelSampling], make_plain: MakePlain) -> None:
    recorder = Recorder(make_plain())
    image = torch.zeros(1, 3, 16, 16)
    kind(recorder, num_samples=200).answer(image, 0)
    noise = torch.cat(recorder.seen)
    assert noise.shape == (200, 3, 16, 16)
    assert not torch.equal(noise[0], noise[1])
    assert abs(float(noise.mean())) < 0.003  # centred: the half below 0 was not clipped away
    if kind is PixelNoiseVote:
        assert noise.abs().max() <= 32 / 255 and noise.abs().max() > 0.99 * 32 / 255
        assert float(noise.std()) == pytest.approx(32 / 255 / 3**0.5, rel=0.02)
    else:
        assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
        assert noise.abs().max() > 3 * 0.25


def test_the_vote_counts_copies(make_plain: MakePlain, images: Tensor) -> None:
    classifier = PixelNoiseVote(make_plain(), num_samples=30, radius=0.5, threshold=25)
    choices = classifier._choices(images, 0)
    answers = classifier.answer(images, 0)
    counts = np.stack([np.bincount(row, minlength=5) for row in choices])
    np.testing.assert_array_equal(answers.labels, counts.argmax(axis=1))
    np.testing.assert_array_equal(answers.scores, counts.max(axis=1))
    np.testing.assert_array_equal(answers.accepted, counts.max(axis=1) >= 25)


def test_smoothing_abstains_above_alpha(make_plain: MakePlain, images: Tensor) -> None:
    network = make_plain()
    classifier = Smoothing(network, num_samples=60, sigma=1.0)
    with torch.no_grad():  # such that the noise decides about the last image
        network.fc.bias.sub_(
            network(images[5] + torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))).mean(dim=0)
        )
    counts = np.stack([np.bincount(row, minlength=5) for row in classifier._choices(images, 0)])
    best, second = np.sort(counts, axis=1)[:, :-3:-1].T
    assert ((counts > 0).sum(axis=1) > 2).any()  # a third class got votes
    answers = classifier.answer(images, 0)
    p_values = np.array([binomtest(int(a), int(a + b), 0.5).pvalue for a, b in zip(best, second, strict=True)])
    np.testing.assert_array_equal(answers.labels, counts.argmax(axis=1))
    np.testing.assert_allclose(answers.scores, 1 - p_values, atol=1e-12)
    np.testing.assert_array_equal(answers.accepted, p_values <= 0.001)
    middle = float(np.median(answers.scores))
    assert 0 < classifier.with_threshold(middle).answer(images, 0).accepted.sum() <= 6


def test_a_tie_is_no_evidence() -> None:
    assert two_sided_p(50, 50) == 1.0
    assert two_sided_p(0, 0) == 1.0


def test_soft_shares_are_of_noisy_copies(make_plain: MakePlain, images: Tensor, draws_of: DrawsOf) -> None:
    for classifier in (PixelNoiseVote(make_plain(), radius=0.5), Smoothing(make_plain(), sigma=0.5)):
        pixels = images.clone().requires_grad_(True)
        logits = classifier.sampled_logits(pixels, 8, draws_of(), "x")
        assert logits.shape == (8, 6, 5) and not torch.allclose(logits[0], logits[1])
        scores = classifier.class_scores(pixels, 8, draws_of(), "x", 0.1)
        torch.testing.assert_close(scores, (logits / 0.1).softmax(dim=2).mean(dim=0))
        (gradient,) = torch.autograd.grad(scores[:, 0].sum(), pixels)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0

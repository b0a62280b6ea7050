"""The vote of FLSS: its noise, its agreement with the runtime, its soft version."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.classifiers.latent_sampling import head_logits, released_noise
from flss_edge.classifiers.vote import MeanSoftmax, Vote, choices_of
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.errors import UsageError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

from .conftest import DrawsOf, MakeFLSS

GOLDEN = "c3ba616341ceef8bf9a7cd844bf75b8edeb83f77e781fc77d4ed5cdb3d5ca21b"


def test_the_released_matrix_is_the_released_one() -> None:
    noise = released_noise(100, 512)
    assert noise.dtype == np.float32 and noise.flags.c_contiguous
    assert hashlib.sha256(noise.tobytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("hidden", [(), (12,), (12, 9)])
def test_folded_head_equals_the_head_of_the_latents(hidden: tuple[int, ...], make_flss: MakeFLSS) -> None:
    network = make_flss(hidden=hidden).double()
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.rand(4, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    for rows in (4, 1):
        noise = torch.randn(rows, 30, 16, generator=generator, dtype=torch.float64)
        expected = network.head(mean[:, None] + std[:, None] * noise)
        torch.testing.assert_close(head_logits(network.head, mean, std, noise), expected)


def test_the_lowest_class_wins_ties(make_flss: MakeFLSS, images: Tensor) -> None:
    network = make_flss()
    with torch.no_grad():  # every sample has the same logits for classes 1 and 3, above the rest
        network.head[0].weight.zero_()
        network.head[0].bias.copy_(torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0]))
    answers = Vote(network, num_samples=10).answer(images, 0)
    assert answers.labels.tolist() == [1] * 6 and answers.scores.tolist() == [10.0] * 6
    assert choices_of(torch.zeros(1, 2, 3)).tolist() == [[0, 0]]


@pytest.mark.parametrize("hidden", [(), (12,)])
def test_an_exported_bundle_gives_the_same_answers(
    hidden: tuple[int, ...], make_flss: MakeFLSS, tmp_path: Path
) -> None:
    from flss_export.exporter import export_bundle

    network = make_flss(hidden=hidden)
    names = ("ant", "bee", "cow", "dog", "eel")
    save_checkpoint(tmp_path / "tiny.pt", Checkpoint(network, names))
    bundle = export_bundle(load_checkpoint(tmp_path / "tiny.pt"), tmp_path / "tiny.bundle", num_samples=20).path
    random = np.random.default_rng(1)
    contrasts = random.random((300, 1, 1, 3))  # mere noise would look all the same to the network
    pixels = (random.integers(0, 256, (300, 16, 16, 3)) * contrasts).astype(np.uint8)
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    vote = Vote(network, num_samples=50, noise_scale=2.0, seed=11)
    middle = int(np.median(vote.answer(tensors, 0).scores))  # such that some are accepted and some are not
    vote = vote.with_threshold(middle)
    noise = SeededNoise(11)
    noise.counter = 1000
    with open_classifier(bundle, policy=SmoothingPolicy(50, 2.0, middle), noise=noise, threads=1) as runtime:
        decisions = runtime.classify(pixels)
    for sizes in ([300], [7, 1, 200, 92]):  # whatever the batches
        ends = np.cumsum(sizes).tolist()
        parts = [vote.answer(tensors[start:end], 1000 + start) for start, end in pairwise([0, *ends])]
        assert [top for part in parts for top in part.labels] == [decision.top_label for decision in decisions]
        assert [score for part in parts for score in part.scores] == [decision.votes for decision in decisions]
        assert [yes for part in parts for yes in part.accepted] == [decision.accepted for decision in decisions]
    votes = np.array([decision.votes for decision in decisions])
    assert len(np.unique(votes)) > 10 and 0 < np.mean(votes >= middle) < 1  # there was something to disagree about


def test_chunks_of_noise_change_nothing(make_flss: MakeFLSS, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    vote = Vote(make_flss(), num_samples=20, seed=5)
    whole = vote.choices(images, 3)
    monkeypatch.setattr("flss_edge.classifiers.latent_sampling.NOISE_BYTES", 4 * 20 * 16 * 4)  # four images'
    np.testing.assert_array_equal(vote.choices(images, 3), whole)


class TestNoise:
    def test_fresh_noise_differs_between_counters(self, make_flss: MakeFLSS, images: Tensor) -> None:
        vote = Vote(make_flss(), num_samples=100, seed=5)
        assert not np.array_equal(vote.choices(images, 0), vote.choices(images, 6))
        np.testing.assert_array_equal(vote.choices(images, 6), vote.choices(images, 6))

    @pytest.mark.parametrize("noise", ["fixed", "released"])
    def test_fixed_noise_is_the_same_for_every_image_and_query(
        self, noise: str, make_flss: MakeFLSS, images: Tensor
    ) -> None:
        vote = replace(Vote(make_flss(), num_samples=100, seed=5), noise=noise)
        same = images[:1].expand(4, -1, -1, -1)
        choices = vote.choices(same, 0)
        assert (choices == choices[0]).all()
        np.testing.assert_array_equal(vote.choices(same, 77), choices)

    @pytest.mark.parametrize("noise", ["fixed", "released"])
    def test_the_attacker_of_fixed_noise_sees_that_noise(
        self, noise: str, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
    ) -> None:
        vote = replace(Vote(make_flss(), num_samples=30, seed=5), noise=noise)
        logits = vote.sampled_logits(images, 2, draws_of(), "any")
        np.testing.assert_array_equal(choices_of(logits.transpose(0, 1)), vote.choices(images, 0))

    def test_released_rows_are_those_of_the_matrix(self, make_flss: MakeFLSS, images: Tensor) -> None:
        network = make_flss()
        vote = Vote(network, num_samples=7, noise_scale=1.5, noise="released")
        with torch.no_grad():
            mean, logvar = network.encoder(images)
            rows = torch.stack([torch.tensor(np.random.RandomState(i).standard_normal(16)) for i in range(7)]).float()
            logits = network.head(mean[:, None] + 1.5 * torch.exp(0.5 * logvar)[:, None] * rows)
        np.testing.assert_array_equal(vote.choices(images, 0), logits.argmax(dim=2).numpy())


class TestSoftVote:
    @torch.no_grad()
    def test_towards_temperature_zero_it_is_the_vote_share(
        self, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
    ) -> None:
        vote = Vote(make_flss(), num_samples=100)
        draws = draws_of()
        choices = vote.sampled_logits(images, 2000, draws, "x").argmax(dim=2)  # (S, B)
        shares = torch.nn.functional.one_hot(choices, 5).double().mean(dim=0)
        assert (shares.max(dim=1).values < 0.95).any()
        errors = [
            float((vote.class_scores(images, 2000, draws, "x", temperature) - shares).abs().max())
            for temperature in (1.0, 0.1, 0.01, 0.001)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 0.05 and errors[-1] < 2e-3

    @pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
    @pytest.mark.parametrize("scale", [1.0, 1e3])
    def test_scores_and_gradients_are_finite(
        self, temperature: float, scale: float, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
    ) -> None:
        network = make_flss()
        with torch.no_grad():
            network.head[0].weight.mul_(scale)
        pixels = images.clone().requires_grad_(True)
        scores = Vote(network).class_scores(pixels, 20, draws_of(), "x", temperature)
        assert ((scores >= 0) & (scores <= 1)).all()
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(6))
        (gradient,) = torch.autograd.grad(scores[:, 0].sum(), pixels)
        assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("frozen", ["mean", "logvar", ""])
    def test_the_gradient_goes_through_mean_and_deviation(
        self, frozen: str, make_flss: MakeFLSS, images: Tensor, draws_of: DrawsOf
    ) -> None:
        network = make_flss().double()
        if frozen:
            with torch.no_grad():
                getattr(network.encoder, frozen).weight.zero_()
        draws, generator = draws_of(dtype=torch.float64), torch.Generator().manual_seed(0)
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

        def total(pixels: Tensor) -> Tensor:
            return Vote(network).class_scores(pixels, 20, draws, "x", 0.5)[:, 2].sum()

        pixels = images.double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(total(pixels), pixels)
        slope = float((gradient * direction).sum())
        step = 1e-6
        with torch.no_grad():
            expected = float(total(pixels + step * direction) - total(pixels - step * direction)) / (2 * step)
        assert abs(slope) > 1e-5
        assert slope == pytest.approx(expected, rel=1e-4)


def test_mean_softmax_averages_probabilities(make_flss: MakeFLSS, images: Tensor) -> None:
    network = make_flss()
    classifier = MeanSoftmax(network, num_samples=30, threshold=0.35, seed=5)
    noise = torch.from_numpy(np.stack([SeededNoise(5).at(9 + image, 30, 16) for image in range(6)]))
    with torch.no_grad():
        mean, logvar = network.encoder(images)
        latents = mean[:, None] + 2 * torch.exp(0.5 * logvar)[:, None] * noise
        probabilities = network.head(latents).softmax(dim=2).mean(dim=1)
    answers = classifier.answer(images, 9)
    np.testing.assert_array_equal(answers.labels, probabilities.argmax(dim=1))
    np.testing.assert_allclose(answers.scores, probabilities.max(dim=1).values, atol=1e-6)
    np.testing.assert_array_equal(answers.accepted, answers.scores >= 0.35)


def test_a_threshold_between_two_numbers_of_votes_asks_for_the_higher(make_flss: MakeFLSS, images: Tensor) -> None:
    vote = Vote(make_flss(), num_samples=20)
    for score in vote.answer(images, 0).scores:
        answers = vote.with_threshold(float(score) - 0.5).answer(images, 0)
        np.testing.assert_array_equal(answers.accepted, answers.scores >= score - 0.5)
        answers = vote.with_threshold(min(float(score) + 0.5, 20)).answer(images, 0)
        np.testing.assert_array_equal(answers.accepted, answers.scores >= min(score + 0.5, 20))


def test_a_threshold_above_the_samples_is_refused(make_flss: MakeFLSS, images: Tensor) -> None:
    vote = Vote(make_flss(), num_samples=20)
    assert vote.with_threshold(-np.inf).answer(images, 0).accepted.all()
    with pytest.raises(UsageError, match="min_votes"):
        vote.with_threshold(21).answer(images, 0)

"""Logit sampling has the distribution of latent sampling: closed forms, moments, and the votes of real graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats  # type: ignore[import-untyped]

from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import open_engine
from flss_runtime.errors import InferenceError
from flss_runtime.images import to_nchw
from flss_runtime.logit_sampling import JITTERS, LogitSampling
from flss_runtime.noise import SeededNoise
from flss_runtime.samplers import LogitSampler, TwoGraphSampler

from .bundles import random_images
from .gaussians import random_gaussians

SCALE = 2.0
SAMPLES = 20_000
LEVEL = 1e-4  # of every test of chance here: under the right distribution, one run in 10,000 fails


def draw(mean_logits: Any, covariance: Any, seed: int = 0) -> npt.NDArray[np.float64]:
    """Logits (B, SAMPLES, K) with noise of its own for every image."""
    count, classes = mean_logits.shape
    noise = np.random.default_rng(seed).standard_normal((count, SAMPLES, classes)).astype(np.float32)
    return LogitSampling(SAMPLES, classes).draw(mean_logits, covariance, SCALE, noise)[0].astype(np.float64)


class TestDistribution:
    def test_pairs_win_as_in_the_closed_form(self) -> None:
        """P(j beats k) = Phi((m_j - m_k) / (s sd_jk)); each count within the binomial's limits at LEVEL / pairs."""
        assert self._pairs_fit(SCALE)

    def test_another_scale_is_told_apart(self) -> None:
        assert not self._pairs_fit(1.1 * SCALE)

    def _pairs_fit(self, claimed_scale: float) -> bool:
        mean_logits, covariance = random_gaussians(4, 6)
        logits = draw(mean_logits, covariance)
        wins = (logits[:, :, :, None] > logits[:, :, None]).sum(axis=1)  # (B, K, K)
        variance = np.einsum("bkk->bk", covariance)
        squared = variance[:, :, None] + variance[:, None] - 2 * covariance
        j, k = np.triu_indices(6, 1)
        margin = (mean_logits[:, :, None] - mean_logits[:, None])[:, j, k]
        chance = special.ndtr(margin / (claimed_scale * np.sqrt(squared[:, j, k])))
        low, high = stats.binom.interval(1 - LEVEL / chance.size, SAMPLES, chance)
        return bool(((low <= wins[:, j, k]) & (wins[:, j, k] <= high)).all())

    def test_mean_and_covariance(self) -> None:
        mean_logits, covariance = random_gaussians(3, 5)
        logits = draw(mean_logits, covariance)
        expected = SCALE**2 * covariance.astype(np.float64)
        deviation = np.sqrt(np.einsum("bkk->bk", expected))
        standard_error = deviation / np.sqrt(SAMPLES)
        assert (np.abs(logits.mean(axis=1) - mean_logits) < 5 * standard_error).all()
        found = np.stack([np.cov(rows.T) for rows in logits])
        # Isserlis: Var(sample covariance jk) = (C_jj C_kk + C_jk^2) / N.
        error = np.sqrt((deviation[:, :, None] ** 2 * deviation[:, None] ** 2 + expected**2) / SAMPLES)
        assert (np.abs(found - expected) < 5 * error).all()
        assert (np.abs(expected) > 10 * error).any()  # so that a covariance of nothing would be seen

    def test_the_order_of_the_classes_does_not_matter(self) -> None:
        mean_logits, covariance = random_gaussians(3, 5)
        noise = np.random.default_rng(0).standard_normal((3, SAMPLES, 5)).astype(np.float32)
        order = np.argsort(mean_logits, axis=1)
        sampling = LogitSampling(SAMPLES, 5)
        logits = sampling.draw(mean_logits, covariance, SCALE, noise, order)[0].astype(np.float64)
        expected = SCALE**2 * covariance
        found = np.stack([np.cov(rows.T) for rows in logits])
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


class TestAgainstLatentSampling:
    """Two-sample chi-square on the votes of real graphs, image by image, with the classes that got votes."""

    def test_votes_are_distributed_alike(self, tiny: Any) -> None:
        assert self._least_level(tiny, 1.0) > LEVEL

    def test_a_slightly_different_scale_is_told_apart(self, tiny: Any) -> None:
        assert self._least_level(tiny, 1.1) < LEVEL

    def _least_level(self, tiny: Any, factor: float) -> float:
        """The smallest p-value, times the number of images."""
        images = to_nchw(random_images(tiny, 12))
        latent = TwoGraphSampler(open_engine(tiny.encoder), open_engine(tiny.head), tiny.num_classes)
        logit = LogitSampler(open_engine(tiny.logit), tiny.num_classes)
        policy = SmoothingPolicy(SAMPLES, SCALE)
        try:
            first = latent.sample(images, SeededNoise(1), policy.num_samples, SCALE)[1].copy()
            second = logit.sample(images, SeededNoise(2), policy.num_samples, factor * SCALE)[1].copy()
        finally:
            latent.close()
            logit.close()
        levels = []
        for one, other in zip(first, second, strict=True):
            counts = np.stack([np.bincount(votes, minlength=tiny.num_classes) for votes in (one, other)])
            counts = counts[:, counts.sum(axis=0) >= 20]
            if counts.shape[1] > 1:
                levels.append(stats.chi2_contingency(counts).pvalue)
        assert len(levels) >= 6
        return float(min(levels)) * len(levels)


class TestJitter:
    def test_is_within_its_bound(self) -> None:
        """The Wasserstein distance of the Gaussians, by its closed form for commuting ones, against s sqrt(K d)."""
        _, covariance = random_gaussians(5, 8)
        identity = np.eye(8, dtype=np.float32)[None]
        transposed = LogitSampling(8, 8).draw(np.zeros((5, 8), np.float32), covariance, 1.0, identity)[0]
        root = transposed.transpose(0, 2, 1).astype(np.float64)
        exact = covariance.astype(np.float64)
        trace = np.trace(exact, axis1=1, axis2=2)
        added = root @ root.transpose(0, 2, 1) - exact
        expected = (JITTERS[0] * trace)[:, None, None] * np.eye(8)
        assert np.abs(added - expected).max() < 1e-7 * trace.max()
        values = np.maximum(np.linalg.eigvalsh(exact), 0)
        moved = np.sqrt(values + JITTERS[0] * trace[:, None]) - np.sqrt(values)
        assert (moved <= 1.01e-3 * np.sqrt(trace)[:, None]).all() and moved.max() > 5e-4 * np.sqrt(trace.min())

    def test_an_image_is_not_changed_by_its_neighbours(self) -> None:
        """One that needs the second jitter, because it is indefinite by more than the first, stands among others."""
        mean_logits, covariance = random_gaussians(6, 5)
        trace = float(np.trace(covariance[2]))
        covariance[2] = np.diag(np.array([1, 1, 1, 1, -1e-5], np.float32) * trace / 4)
        points = np.random.default_rng(0).standard_normal((1, 50, 5)).astype(np.float32)
        with pytest.raises(np.linalg.LinAlgError):
            np.linalg.cholesky(covariance[2] + JITTERS[0] * trace * np.eye(5))
        together = LogitSampling(50, 5).draw(mean_logits, covariance, 2.0, points)[0]
        for row, image in enumerate(together):
            one = slice(row, row + 1)
            alone = LogitSampling(50, 5).draw(mean_logits[one], covariance[one], 2.0, points)[0]
            np.testing.assert_array_equal(image, alone[0])

    @pytest.mark.parametrize("rank", [0, 1, 3])
    def test_any_rank_has_a_factor(self, rank: int) -> None:
        weight = np.random.default_rng(0).standard_normal((6, rank)).astype(np.float32)
        covariance = (weight @ weight.T)[None].astype(np.float32)
        mean_logits = np.zeros((1, 6), np.float32)
        noise = np.random.default_rng(1).standard_normal((1, SAMPLES, 6)).astype(np.float32)
        logits = LogitSampling(SAMPLES, 6).draw(mean_logits, covariance, 1.0, noise)[0][0].astype(np.float64)
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(np.cov(logits.T), covariance[0], atol=0.05 * max(1e-9, float(covariance.max())))

    def test_rounding_that_the_first_jitter_cannot_mend(self) -> None:
        """As a covariance with an error of 1e-5 of its trace, which some engine's arithmetic might make."""
        weight = np.random.default_rng(0).standard_normal((6, 2))
        covariance = (weight @ weight.T).astype(np.float32)[None]
        covariance -= np.float32(1e-5 * np.trace(covariance[0])) * np.eye(6, dtype=np.float32)
        assert np.linalg.eigvalsh(covariance[0].astype(np.float64)).min() < -5e-6 * np.trace(covariance[0])
        logits, _ = LogitSampling(10, 6).draw(np.zeros((1, 6), np.float32), covariance, 1.0, np.ones((1, 10, 6)))
        assert np.isfinite(logits).all()

    def test_no_covariance_is_an_error(self) -> None:
        covariance = -np.eye(4, dtype=np.float32)[None]
        with pytest.raises(InferenceError, match="not positive semidefinite"):
            LogitSampling(10, 4).draw(np.zeros((1, 4), np.float32), covariance, 1.0, np.ones((1, 10, 4), np.float32))

    def test_what_is_not_finite_does_not_look_as_if_it_were(self) -> None:
        covariance = np.full((1, 4, 4), np.nan, np.float32)
        noise = np.ones((1, 10, 4), np.float32)
        try:
            logits, _ = LogitSampling(10, 4).draw(np.zeros((1, 4), np.float32), covariance, 1.0, noise)
        except InferenceError:
            return
        assert not np.isfinite(logits).any()


class TestBuffers:
    def test_batches_of_any_size_in_any_order(self) -> None:
        mean_logits, covariance = random_gaussians(7, 5)
        noise = np.random.default_rng(0).standard_normal((7, 50, 5)).astype(np.float32)
        sampling = LogitSampling(50, 5)
        whole = sampling.draw(mean_logits, covariance, SCALE, noise)[0].copy()
        for rows in (slice(0, 1), slice(2, 6), slice(6, 7), slice(0, 7)):
            part = sampling.draw(mean_logits[rows], covariance[rows], SCALE, noise[rows])
            np.testing.assert_allclose(part[0], whole[rows], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(part[1], part[0].argmax(axis=2))
            assert part[0].dtype == np.float32 and part[1].dtype == np.int64

    def test_a_scale_of_zero_is_the_mean_path(self) -> None:
        mean_logits, covariance = random_gaussians(7, 5)
        noise = np.random.default_rng(0).standard_normal((1, 50, 5)).astype(np.float32)
        choices = LogitSampling(50, 5).draw(mean_logits, covariance, 0.0, noise)[1]
        np.testing.assert_array_equal(choices, np.repeat(mean_logits.argmax(axis=1)[:, None], 50, axis=1))

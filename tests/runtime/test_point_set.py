"""The fixed points: what they are, on every machine, and what they are good for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from flss_runtime.logit_sampling import LogitSampling
from flss_runtime.point_set import PointSetSampling, leading_first, normal_points

from .gaussians import DRAWS, random_gaussians, true_shares, vote_shares


def uniform(points: Any) -> Any:
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in points.ravel().tolist()]).reshape(
        points.shape
    )


class TestPoints:
    def test_the_first_numbers(self) -> None:
        """Another value is another set of votes, and every threshold that was calibrated with it is void."""
        inverse = [(1 / 2, 1 / 3, 1 / 5, 1 / 7), (1 / 4, 2 / 3, 2 / 5, 2 / 7), (3 / 4, 1 / 9, 3 / 5, 3 / 7)]
        np.testing.assert_allclose(uniform(normal_points(6, 4)[:3]), inverse, atol=1e-6)

    def test_golden_permuted_coordinates(self) -> None:
        expected = [[-0.2247278, -1.1295633], [-0.9552873, -0.5769048], [1.4635162, 0.8731871], [0.6932483, -0.6227186]]
        np.testing.assert_allclose(normal_points(8, 32)[:4, [9, 31]], expected, atol=1e-6)

    @pytest.mark.parametrize(("coordinate", "base"), [(0, 2), (1, 3), (3, 7), (9, 29)])
    def test_every_run_of_a_coordinate_is_spread_evenly(self, coordinate: int, base: int) -> None:
        """One of the first b points, and of the next b, lies in each b-th of the distribution; likewise for b^2."""
        column = normal_points(2 * base**2, 10)[: base**2, coordinate]
        cells = (uniform(column) * base**2 + 1e-3).astype(int)
        for start in range(0, base**2, base):
            assert sorted(cells[start : start + base] // base) == list(range(base))
        assert sorted(cells) == list(range(base**2))

    def test_every_point_has_its_mirror_image(self) -> None:
        points = normal_points(100, 10)
        np.testing.assert_array_equal(points[50:], -points[:50])
        assert (points[:50].sum(axis=0) != 0).any()

    @pytest.mark.parametrize("count", [1, 101])
    def test_an_odd_number_has_the_origin(self, count: int) -> None:
        points = normal_points(count, 3)
        assert points.shape == (count, 3) and (points[-1] == 0).all()
        assert (points[:-1] != 0).any(axis=1).all()

    def test_is_float32_and_read_only_and_the_same_again(self) -> None:
        points = normal_points(100, 32)
        assert points.dtype == np.float32 and not points.flags.writeable and np.isfinite(points).all()
        np.testing.assert_array_equal(points, normal_points(100, 32))

    def test_every_coordinate_is_standard_normal(self) -> None:
        points = normal_points(2000, 32).astype(np.float64)
        assert np.abs(points.std(axis=0) - 1).max() < 0.02
        correlation = np.corrcoef(points.T) - np.eye(32)
        assert np.abs(correlation).max() < 0.12  # where nothing is permuted, large bases run in parallel: 0.38


def test_leading_classes_come_first_and_ties_by_number() -> None:
    order = leading_first(np.array([[1, 3, 2], [5, 5, 7]], np.float32))
    np.testing.assert_array_equal(order, [[1, 2, 0], [2, 0, 1]])


class TestVotes:
    @pytest.mark.parametrize(("classes", "limit"), [(3, 0.6), (10, 0.65), (32, 0.9)])
    def test_are_closer_to_the_truth_than_random_ones(self, classes: int, limit: float) -> None:
        """Measured in the same place: the share of the winner, beside DRAWS random draws."""
        mean_logits, covariance = random_gaussians(40, classes)
        truth = true_shares(mean_logits, covariance)
        images, top = np.arange(40), truth.argmax(axis=1)
        found = vote_shares(PointSetSampling(100, classes).draw(mean_logits, covariance, 2.0)[1], classes)
        error = np.sqrt(np.mean((found - truth)[images, top] ** 2))
        share = truth[images, top]
        random_error = np.sqrt(np.mean(share * (1 - share) / 100))
        assert error < limit * random_error
        assert np.sqrt(np.mean(share * (1 - share) / DRAWS)) < 0.05 * random_error  # so the truth is one

    def test_the_order_of_the_classes_pays(self) -> None:
        """Else it would be work for nothing."""
        mean_logits, covariance = random_gaussians(200, 10)
        truth = true_shares(mean_logits, covariance)
        points = normal_points(100, 10)[None]
        ordered = vote_shares(PointSetSampling(100, 10).draw(mean_logits, covariance, 2.0)[1], 10)
        plain = vote_shares(LogitSampling(100, 10).draw(mean_logits, covariance, 2.0, points)[1], 10)
        assert np.square(ordered - truth).sum() < 0.9 * np.square(plain - truth).sum()

    def test_an_image_has_one_answer(self) -> None:
        mean_logits, covariance = random_gaussians(5, 6)
        sampling = PointSetSampling(100, 6)
        whole = sampling.draw(mean_logits, covariance, 2.0)[1].copy()
        for row in range(5):
            alone = sampling.draw(mean_logits[row : row + 1], covariance[row : row + 1], 2.0)[1]
            np.testing.assert_array_equal(alone[0], whole[row])

    def test_do_not_depend_on_the_numbers_of_the_classes(self) -> None:
        mean_logits, covariance = random_gaussians(20, 7)
        names = np.random.default_rng(0).permutation(7)
        sampling = PointSetSampling(100, 7)
        found = sampling.draw(mean_logits, covariance, 2.0)[1].copy()
        renamed = sampling.draw(mean_logits[:, names], covariance[:, names][:, :, names], 2.0)[1]
        np.testing.assert_array_equal(names[renamed], found)

    def test_one_sample_is_the_mean_path(self) -> None:
        mean_logits, covariance = random_gaussians(20, 7)
        choices = PointSetSampling(1, 7).draw(mean_logits, covariance, 2.0)[1]
        np.testing.assert_array_equal(choices[:, 0], mean_logits.argmax(axis=1))

"""Corruptions: what each does to an image whose answer is known, and what holds for all."""

from __future__ import annotations

import colorsys
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from flss_edge.attacks import Victim
from flss_edge.data import load_images
from flss_edge.minibatch import Draws
from flss_edge.robustness.corruptions import CORRUPTIONS, SEVERITIES, planned_corruptions
from flss_runtime.errors import UsageError


def draws_of(count: int, rows: slice | None = None, dtype: torch.dtype = torch.float32) -> Draws:
    return Draws(7, 3, count, rows or slice(0, count), torch.device("cpu"), dtype)


def nobody(images: Tensor) -> Tensor:
    raise AssertionError("a corruption asks no classifier")


def corrupt(name: str, severity: int, images: Tensor, draws: Draws | None = None, victim: Victim = nobody) -> Tensor:
    labels = torch.zeros(len(images), dtype=torch.int64)
    draws = draws or draws_of(len(images), dtype=images.dtype)
    return CORRUPTIONS[name](severity)(victim, images, labels, epsilon=0.0, draws=draws)


def scenes(count: int, size: int = 32) -> Tensor:
    """Pictures with edges, colours and texture, in 255ths."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    picture = torch.nn.functional.interpolate(coarse, (size, size), mode="nearest")
    picture = picture + 0.1 * torch.rand(count, 3, size, size, generator=random)
    return (picture.clamp(0, 1) * 255).round() / 255


def test_the_parameters_are_those_of_cifar10_c() -> None:
    """Read from the published table; a changed one would not show anywhere else."""
    assert {name: kind.parameters for name, kind in CORRUPTIONS.items() if name != "bernoulli-noise"} == {
        "gaussian-noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "gaussian-blur": (0.4, 0.6, 0.7, 0.8, 1),
        "motion-blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "jpeg": (80, 65, 58, 50, 40),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    }


@pytest.mark.parametrize("severity", SEVERITIES)
def test_bernoulli_noise_is_one_of_two_values(severity: int) -> None:
    grey = torch.full((4, 3, 32, 32), 0.5, dtype=torch.float64)
    steps = (corrupt("bernoulli-noise", severity, grey) - grey) * 255
    assert torch.allclose(steps.abs(), torch.full_like(steps, severity), atol=1e-9)
    up = float((steps > 0).double().mean())
    assert abs(up - 0.5) < 4 * 0.5 / math.sqrt(steps.numel())


def test_bernoulli_noise_stays_on_the_8_bit_grid_and_in_range() -> None:
    images = torch.tensor([0.0, 1.0, 0.2]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    noisy = corrupt("bernoulli-noise", 1, images) * 255
    assert torch.allclose(noisy, noisy.round(), atol=1e-4)
    assert set(noisy[:, 0].round().unique().tolist()) == {0, 1}
    assert set(noisy[:, 1].round().unique().tolist()) == {254, 255}
    assert set(noisy[:, 2].round().unique().tolist()) == {50, 52}


@pytest.mark.parametrize(("severity", "deviation"), list(zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True)))
def test_gaussian_noise_has_its_standard_deviation(severity: int, deviation: float) -> None:
    grey = torch.full((8, 3, 32, 32), 0.5, dtype=torch.float64)  # five deviations from the edge: hardly ever clipped
    noise = corrupt("gaussian-noise", severity, grey) - grey
    count = noise.numel()
    assert float(noise.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
    assert abs(float(noise.mean())) < 4 * deviation / math.sqrt(count)
    correlation = torch.corrcoef(noise.transpose(0, 1).flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < 4 / math.sqrt(count / 3)  # each channel has noise of its own


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_of_a_point_is_the_kernel(severity: int) -> None:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    point = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    point[:, 1, 15, 12] = 1
    blurred = corrupt("gaussian-blur", severity, point)
    places = np.arange(-4, 5)
    reach = np.abs(places) <= int(4 * sigma + 0.5)
    line = np.exp(-(places**2) / (2 * sigma**2)) * reach
    line /= line.sum()
    np.testing.assert_allclose(blurred[0, 1, 11:20, 8:17], np.outer(line, line), atol=1e-15)
    assert float(blurred.sum()) == pytest.approx(1)
    assert blurred[:, (0, 2)].count_nonzero() == 0


@pytest.mark.parametrize("shape", [(32, 32), (40, 24), (96, 64), (5, 3)])
def test_gaussian_blur_is_scipys_at_every_size(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = 0.8 * min(shape) / 32
    expected = ndimage.gaussian_filter(images.numpy(), sigma=(0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(corrupt("gaussian-blur", 4, images), expected, atol=1e-12)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_of_a_point_is_half_a_gaussian_on_a_line(severity: int) -> None:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    points = torch.zeros(20, 3, 64, 64, dtype=torch.float64)
    points[:, :, 31, 31] = 1
    blurred = corrupt("motion-blur", severity, points)
    angles = np.deg2rad(90 * draws_of(20, dtype=torch.float64).uniform("motion blur").numpy() - 45)
    steps = np.arange(2 * 2 * radius + 1)  # a side of 64 pixels: everything twice as long
    weights = np.exp(-0.5 * (steps / (2 * sigma)) ** 2)
    weights /= weights.sum()
    expected = np.zeros((20, 64, 64))
    for place, angle in enumerate(angles):
        # A point is seen at the places whose line leads to it.
        for step, weight in zip(steps, weights, strict=True):
            down, right = round(step * math.sin(angle)), round(step * math.cos(angle))
            if 0 <= 31 - down < 64 and 0 <= 31 - right < 64:
                expected[place, 31 - down, 31 - right] += weight
    np.testing.assert_allclose(blurred, np.broadcast_to(expected[:, None], blurred.shape), atol=1e-12)
    assert angles.min() < -0.3 and angles.max() > 0.3


def test_blur_leaves_an_even_colour_alone() -> None:
    even = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 20, 31)
    for name in ("gaussian-blur", "motion-blur"):
        torch.testing.assert_close(corrupt(name, 5, even), even, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True)))
def test_jpeg_is_pillows(severity: int, quality: int) -> None:
    images = scenes(3)
    changed = corrupt("jpeg", severity, images)
    for image, found in zip(images, changed, strict=True):
        pixels = (image.permute(1, 2, 0).double() * 255).round().byte().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="jpeg", quality=quality)
        decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())))
        np.testing.assert_array_equal((found.permute(1, 2, 0).double() * 255).round().byte(), decoded)


def test_jpeg_sees_whole_255ths() -> None:
    images = scenes(2)
    assert torch.equal(corrupt("jpeg", 3, images), corrupt("jpeg", 3, (images + 0.4 / 255).clamp(max=1)))
    assert not torch.equal(corrupt("jpeg", 3, images), corrupt("jpeg", 3, (images + 3 / 255).clamp(max=1)))


@pytest.mark.parametrize(("severity", "shift"), list(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)))
def test_brightness_moves_the_hsv_value(severity: int, shift: float) -> None:
    colours = torch.tensor([[0, 0, 0], [0.2, 0.2, 0.2], [0.9, 0.3, 0], [1, 1, 1], [0.1, 0.6, 0.4]], dtype=torch.float64)
    changed = corrupt("brightness", severity, colours.T[None, :, None, :])[0, :, 0].T
    for colour, found in zip(colours.tolist(), changed.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert found == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1)), abs=1e-12)


@pytest.mark.parametrize(("severity", "factor"), list(zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True)))
def test_contrast_shrinks_the_spread_and_keeps_the_mean_colour(severity: int, factor: float) -> None:
    images = scenes(4).double()
    changed = corrupt("contrast", severity, images)
    torch.testing.assert_close(changed.mean(dim=(2, 3)), images.mean(dim=(2, 3)))
    torch.testing.assert_close(changed.std(dim=(2, 3)), factor * images.std(dim=(2, 3)))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 48])
def test_a_higher_severity_is_further_from_the_image(name: str, size: int) -> None:
    images = scenes(16, size)
    distances = [float((corrupt(name, severity, images) - images).square().mean()) for severity in SEVERITIES]
    # Motion blur 3 and 4 differ in the length of a tail that weighs e**-18.
    assert all(after >= before * (1 - 1e-5) for before, after in itertools.pairwise(distances)), distances
    assert 0 < distances[0] < distances[2] < distances[4], distances


def test_severity_on_real_images(cifar10: Path) -> None:
    images = load_images(cifar10, "test")
    real = torch.from_numpy(images.images[:64]).permute(0, 3, 1, 2) / 255
    for name in CORRUPTIONS:
        distances = [float((corrupt(name, severity, real) - real).square().mean()) for severity in SEVERITIES]
        assert all(after >= before * (1 - 1e-5) for before, after in itertools.pairwise(distances)), (name, distances)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    count=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
    corners=st.booleans(),
)
def test_shape_type_and_range(
    name: str, severity: int, count: int, height: int, width: int, double: bool, seed: int, corners: bool
) -> None:
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    images = (images.round() if corners else images).to(torch.float64 if double else torch.float32)
    before = images.clone()
    changed = corrupt(name, severity, images.requires_grad_(True))
    assert (changed.shape, changed.dtype) == (before.shape, before.dtype)
    assert bool(((changed >= 0) & (changed <= 1)).all())
    assert not changed.requires_grad
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_the_others(name: str) -> None:
    images = scenes(6)
    whole = corrupt(name, 4, images)
    parts = [corrupt(name, 4, images[rows], draws_of(6, rows)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, corrupt(name, 4, images))


@pytest.mark.parametrize("name", ["bernoulli-noise", "gaussian-noise", "motion-blur"])
def test_images_have_randomness_of_their_own(name: str) -> None:
    twice = scenes(1).expand(2, -1, -1, -1)
    first, second = corrupt(name, 3, twice)
    assert not torch.equal(first, second)
    assert not torch.equal(corrupt(name, 3, twice, Draws(8, 3, 2, slice(0, 2), torch.device("cpu")))[0], first)


def test_plans_name_kind_and_severity() -> None:
    plans = planned_corruptions(["gaussian-noise", "jpeg"], [1, 3])
    assert [plan.name for plan in plans] == ["gaussian-noise-1", "gaussian-noise-3", "jpeg-1", "jpeg-3"]
    assert {(plan.groups, plan.epsilon, plan.victim, plan.bounded) for plan in plans} == {
        (("corruption",), 0.0, "", False)
    }
    images = scenes(2)
    labels = torch.zeros(2, dtype=torch.int64)
    ran = plans[1].run(nobody, images, labels, epsilon=plans[1].epsilon, draws=draws_of(2))
    assert torch.equal(ran, corrupt("gaussian-noise", 3, images))
    every = planned_corruptions()
    assert len({plan.name for plan in every}) == len(every) == 5 * len(CORRUPTIONS)


@pytest.mark.parametrize(
    ("names", "severities", "message"),
    [(["fog"], [1], "no corruption 'fog'"), (["jpeg"], [0], "no severity 0"), (["jpeg"], [6], "no severity 6")],
)
def test_unknown_corruptions_are_refused(names: list[str], severities: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned_corruptions(names, severities)

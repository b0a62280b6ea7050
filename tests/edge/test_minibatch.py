"""The random numbers of a mini-batch, and the augmentations that are made with them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as transforms

from flss_edge.augment import CUTOUT, augment, strong_view
from flss_edge.minibatch import Draws, seed_of

CPU = torch.device("cpu")


def draws(size: int, rows: slice | None = None, seed: int = 1, step: int = 2) -> Draws:
    return Draws(seed, step, size, rows or slice(0, size), CPU)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.data(), st.sampled_from(["normal", "uniform"]))
def test_a_part_draws_the_rows_of_the_whole(size: int, data: st.DataObject, kind: str) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    part, whole = draws(size, slice(start, stop)), draws(size)
    assert torch.equal(getattr(part, kind)("noise", 3, 2), getattr(whole, kind)("noise", 3, 2)[start:stop])


def test_the_same_name_repeats_whatever_was_drawn_before() -> None:
    first = draws(7)
    once = first.normal("attack", 5)
    first.uniform("other", 100)
    torch.rand(3)  # the global state is no part of it
    assert torch.equal(first.normal("attack", 5), once)
    assert torch.equal(draws(7).normal("attack", 5), once)


def test_other_names_steps_and_seeds_give_unrelated_numbers() -> None:
    numbers = [
        draws(1000).normal("attack", 20),
        draws(1000).normal("attack ", 20),
        draws(1000, step=3).normal("attack", 20),
        draws(1000, seed=2).normal("attack", 20),
        draws(1000, seed=2, step=1).normal("attack", 20),  # seed and step swapped
        draws(1000, seed=12, step=0).normal("attack", 20),  # 1/2, 12/0: nothing is merely joined
    ]
    correlation = torch.corrcoef(torch.stack([values.flatten() for values in numbers]))
    assert float((correlation - torch.eye(len(numbers))).abs().max()) < 4 / 20_000**0.5
    within = numbers[0].T.corrcoef()  # between the columns
    assert float((within - torch.eye(20)).abs().max()) < 5 / 1000**0.5


def test_seeds_are_different_and_in_range() -> None:
    seeds = {seed_of(seed, step, name) for seed in range(20) for step in range(20) for name in ("a", "b", "order")}
    assert len(seeds) == 20 * 20 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 11, "a") != seed_of(11, 1, "a") != seed_of(111, 1, "a")


def test_moments() -> None:
    normal, uniform = draws(500).normal("x", 400), draws(500).uniform("x", 400)
    count = normal.numel()
    assert float(normal.mean()) == pytest.approx(0, abs=5 / count**0.5)
    assert float(normal.var()) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert float((normal**4).mean()) == pytest.approx(3, abs=5 * (96 / count) ** 0.5)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / count) ** 0.5)
    assert float(uniform.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180 / count) ** 0.5)
    assert 0 <= float(uniform.min()) < 0.001 < 0.999 < float(uniform.max()) < 1


def test_numbers_have_the_wanted_type() -> None:
    double = Draws(1, 2, 4, slice(1, 3), CPU, torch.float64).normal("x", 5)
    assert (double.dtype, double.shape) == (torch.float64, (2, 5))


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def crops(image: Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """What torchvision's padding, crop and flip can make of an image, and how."""
    size = image.shape[-1]
    padded = transforms.pad(image, [padding])
    made = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = transforms.crop(padded, top, left, size, size)
            made[(crop.float() / 255).numpy().tobytes()] = top, left, False
            made[(transforms.hflip(crop).float() / 255).numpy().tobytes()] = top, left, True
    return made


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_augmentation_is_torchvisions(padding: int) -> None:
    """Every output is one of the (2p+1)^2 * 2 crops, all of them occur, and each about equally often."""
    image = pictures(1, 8)
    count = 400 * (2 * padding + 1) ** 2
    out = augment(image.expand(count, -1, -1, -1), padding, True, draws(count)).contiguous()
    assert (out.dtype, out.shape) == (torch.float32, (count, 3, 8, 8))
    possible = crops(image[0], padding)
    seen = Counter(possible[row.numpy().tobytes()] for row in out)  # a KeyError is an impossible output
    assert set(seen) == set(possible.values())
    assert all(200 - 6 * 200**0.5 < number < 200 + 6 * 200**0.5 for number in seen.values())


def test_each_image_is_moved_by_its_own_draw_and_a_part_by_those_of_its_rows() -> None:
    images = pictures(40, 8)
    whole = augment(images, 2, True, draws(40))
    made = [crops(image, 2)[row.contiguous().numpy().tobytes()] for image, row in zip(images, whole, strict=True)]
    assert len(set(made)) > 20
    part = augment(images[11:29], 2, True, draws(40, slice(11, 29)))
    assert torch.equal(part, whole[11:29])


def test_augmentation_can_be_switched_off() -> None:
    images = pictures(40, 8)
    assert torch.equal(augment(images, 0, False, draws(40)), images.float() / 255)
    shifted = augment(images, 2, False, draws(40))
    made = [crops(image, 2)[row.contiguous().numpy().tobytes()] for image, row in zip(images, shifted, strict=True)]
    assert not any(flipped for *_, flipped in made)


def test_the_second_view_stays_an_image_and_loses_at_most_a_square() -> None:
    size = 32
    images = 0.2 + 0.2 * torch.rand(300, 3, size, size, generator=torch.Generator().manual_seed(4))
    view = strong_view(images, draws(300))
    assert view.shape == images.shape
    assert view.dtype == images.dtype
    assert float(view.min()) >= 0
    assert float(view.max()) <= 1
    erased = (view == 0.5).all(dim=1)
    assert bool(erased.any(dim=(1, 2)).all())  # the centre lies inside the image
    rows, columns = erased.any(dim=2), erased.any(dim=1)
    assert int(rows.sum(dim=1).max()) <= CUTOUT * size
    assert int(columns.sum(dim=1).max()) <= CUTOUT * size
    assert torch.equal(erased, rows[:, :, None] & columns[:, None, :])  # a rectangle
    areas = erased.sum(dim=(1, 2))
    assert int(areas.max()) == (CUTOUT * size) ** 2
    assert float((view - images).abs().mean(dim=(1, 2, 3)).min()) > 0  # each image changes
    assert torch.equal(strong_view(images[7:20], draws(300, slice(7, 20))), view[7:20])


def test_the_second_views_colours_move_at_random_about_the_image() -> None:
    """The mean brightness moves by up to 0.4 of itself, up and down; without it, a grey image would stay."""
    images = torch.full((2000, 3, 8, 8), 0.3)
    view = strong_view(images, draws(2000))
    kept = torch.where(view == 0.5, torch.nan, view)
    means = kept.nanmean(dim=(1, 2, 3))
    assert float(means.min()) == pytest.approx(0.3 * 0.6, abs=0.005)
    assert float(means.max()) == pytest.approx(0.3 * 1.4, abs=0.005)
    assert float(means.mean()) == pytest.approx(0.3, abs=0.005)

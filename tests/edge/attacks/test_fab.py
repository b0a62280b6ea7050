"""FAB: the projection against linear programming, the nearest point of linear models, and every attack's properties."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from flss_edge.attacks import Attack
from flss_edge.attacks.fab import fab, fab_targeted, step_to_plane
from flss_edge.attacks.objectives import margin

from . import attack_cases
from .attack_cases import Case, PassCounter, cases, curved, draws_for, images_with_corners
from .labels_of_victim import against_the_answers
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "fab": partial(fab, steps=8),
    "fab_targeted": partial(fab_targeted, steps=4),
    "fab restarted": partial(fab, steps=4, restarts=3),
}


def smallest_radius(point: np.ndarray, normal: np.ndarray, change: float) -> float:
    """The optimum by linear programming: the steps and their common bound; infinite where the box has none."""
    size = len(point)
    bounds = [*zip(-point, 1 - point, strict=True), (0, None)]
    each = np.eye(size)
    limits = np.block([[each, -np.ones((size, 1))], [-each, -np.ones((size, 1))]])
    cost = np.r_[np.zeros(size), 1]
    found = linprog(cost, limits, np.zeros(2 * size), [np.r_[normal, 0]], [change], bounds)
    return float(found.fun) if found.status == 0 else np.inf


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 9), scale=st.sampled_from((0.0, 1e-3, 0.3, 1.0, 3.0)))
def test_the_projection_is_the_smallest_step_within_the_box(seed: int, size: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    points = (2 * random.random((3, size)) - 0.5).clip(0, 1)  # half of the coordinates have no room on one side
    normals = random.standard_normal((3, size)) * (random.random((3, size)) < 0.8)
    change = scale * random.standard_normal(3)
    steps = step_to_plane(torch.tensor(points), torch.tensor(normals), torch.tensor(change)).numpy()
    assert (points + steps >= 0).all() and (points + steps <= 1).all()
    for point, normal, wanted, step in zip(points, normals, change, steps, strict=True):
        room = np.where(normal * wanted > 0, 1 - point, point)
        most = np.abs(normal) @ room
        if abs(wanted) > most + 1e-9:  # out of reach: as far as there is room
            np.testing.assert_allclose(normal @ step, np.sign(wanted) * most, atol=1e-12)
        elif abs(wanted) < most - 1e-9 or wanted == 0:
            np.testing.assert_allclose(normal @ step, wanted, atol=1e-12)
            np.testing.assert_allclose(np.abs(step).max(), smallest_radius(point, normal, wanted), atol=1e-7)


def test_the_projection_ends_for_what_is_no_number() -> None:
    points = torch.full((2, 4), 0.5)
    steps = step_to_plane(points, torch.ones(2, 4), torch.tensor([torch.nan, 0.4]))
    torch.testing.assert_close(steps[1], torch.full((4,), 0.1))


def linear(classes: int) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(attack_cases.PIXELS, classes))
    generator = torch.Generator().manual_seed(classes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network.double()


def nearest_distances(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How far each image is from any boundary of a linear network, within [0, 1], by linear programming."""
    weights, constants = network[1].weight.detach().numpy(), network[1].bias.detach().numpy()
    distances = []
    for image, label in zip(images.flatten(1).numpy(), labels.tolist(), strict=True):
        normals, offsets = weights - weights[label], constants - constants[label]
        others = [other for other in range(len(weights)) if other != label]
        values = [smallest_radius(image, normals[k], -(normals[k] @ image + offsets[k])) for k in others]
        distances.append(min(values))
    return torch.tensor(distances)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("attack", [fab, fab_targeted])
def test_finds_the_nearest_point_of_a_linear_model(attack: Attack, classes: int) -> None:
    """Pixels at the range's ends included, which have no room on one side."""
    network, images = linear(classes), images_with_corners(8)
    labels = network(images).argmax(dim=1)
    nearest = nearest_distances(network, images, labels)
    found = attack(network, images, labels, epsilon=1.0, draws=draws_for(8))
    distance = (found - images).abs().amax(dim=(1, 2, 3))
    assert bool((margin(network(found), labels) > 0).all())
    assert bool((distance >= nearest - 1e-7).all())  # the precision of the linear program
    assert bool((distance <= 1.01 * nearest).all())
    assert float(nearest.min()) > 1e-3


def test_only_images_whose_nearest_point_is_in_the_ball_are_fooled_by_it() -> None:
    network, images = linear(5), images_with_corners(8)
    labels = network(images).argmax(dim=1)
    nearest = nearest_distances(network, images, labels)
    epsilon = float(nearest.sort().values[3:5].mean())
    found = fab_targeted(network, images, labels, epsilon=epsilon, draws=draws_for(8))
    value = margin(network(found), labels)
    assert torch.equal(value > 0, nearest < epsilon)
    far = nearest > epsilon  # those are attacked all the same, up to the ball's surface
    torch.testing.assert_close((found - images)[far].abs().amax(dim=(1, 2, 3)), torch.full((4,), epsilon).double())
    assert bool((value > margin(network(images), labels) + 0.1)[far].all())


def test_what_is_wrong_already_stays() -> None:
    network, images = linear(3), images_with_corners(6)
    labels = network(images).argmin(dim=1)
    for attack in SHORT.values():
        assert torch.equal(attack(network, images, labels, epsilon=0.5, draws=draws_for(6)), images)


def test_restarts_find_nearer_points() -> None:
    """Not always: the final search starts from another point then."""
    network, images = curved(), images_with_corners(12)
    labels = network(images).argmax(dim=1)
    found = [
        fab(network, images, labels, epsilon=1.0, draws=draws_for(12), steps=5, restarts=restarts)
        for restarts in (1, 6)
    ]
    once, often = ((x - images).abs().amax(dim=(1, 2, 3)) for x in found)
    assert int((often < once - 1e-3).sum()) > int((often > once + 1e-3).sum())


def test_more_targets_never_find_a_point_further_away() -> None:
    network, images = curved(6), images_with_corners(12)
    labels = network(images).argmax(dim=1)
    found = [
        fab_targeted(network, images, labels, epsilon=1.0, draws=draws_for(12), steps=10, targets=targets)
        for targets in (1, 5, 9)
    ]
    one, all_of_them, more = ((x - images).abs().amax(dim=(1, 2, 3)) for x in found)
    assert bool((all_of_them <= one + 1e-3).all()) and bool((all_of_them < one - 1e-6).any())
    assert torch.equal(all_of_them, more)  # there are five other classes


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(attack: Attack, case: Case) -> None:
    attack_cases.assert_inside(attack, case)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_attacks_each_image_on_its_own(attack: Attack) -> None:
    attack_cases.assert_each_image_on_its_own(against_the_answers(attack))


@pytest.mark.parametrize("name", SHORT)
def test_the_draws_decide(name: str) -> None:
    attack_cases.assert_repeats(against_the_answers(SHORT[name]), random=name == "fab restarted")


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_averages_over_draws(attack: Attack) -> None:
    attack_cases.assert_averages_draws(against_the_answers(attack))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("attack", [fab, fab_targeted])
def test_passes(attack: Attack, steps: int) -> None:
    network, images = curved(10), images_with_corners(3)
    labels = network(images).argmax(dim=1)
    counter = PassCounter(network)
    attack(network, images, labels, epsilon=0.1, draws=draws_for(3), steps=steps)
    expected = passes_by_hand(attack, steps=steps, restarts=1, targets=9)
    assert (counter.forward / 3, counter.backward / 3) == expected

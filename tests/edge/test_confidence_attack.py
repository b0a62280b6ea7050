"""The attack on confidence: its budget, its best iterate, its backtracking, and the released loop restated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flss_edge.confidence_attack import confidence_attack, gaussian_start, log_wrong_confidence, uniform_norm_start
from flss_edge.minibatch import Draws
from flss_edge.model import ModelConfig, Network, build_network


def network_and_images() -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(0)
    network = build_network(ModelConfig(network="classifier", width=4, blocks=(1, 1), num_classes=4, image_size=16))
    return network.double().eval(), torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.arange(6) % 4


def start_around(images: Tensor) -> Tensor:
    draws = Draws(1, 0, len(images), slice(0, len(images)), torch.device("cpu"), images.dtype)
    return uniform_norm_start(images, draws, 0.05)


def literal(network: Network, images: Tensor, labels: Tensor, start: Tensor, steps: int, factor: float) -> Tensor:
    """The released loop, image by image, probabilities instead of their logarithm, two evaluations a step."""

    def error(image: Tensor, label: int, delta: Tensor) -> Tensor:
        p = torch.softmax(network((image + delta)[None]), dim=1)[0]
        return -torch.cat([p[:label], p[label + 1 :]]).max()

    def project(image: Tensor, delta: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(delta.clamp(-0.05, 0.05), -image), 1 - image)

    results = []
    for image, label, begin in zip(images, labels.tolist(), start, strict=True):
        delta, velocity, rate = begin - image, torch.zeros_like(image), 0.02
        best, lowest = delta, math.inf
        for step in range(steps + 1):
            delta = project(image, delta).detach().requires_grad_(True)
            current = error(image, label, delta)
            value = float(current.detach())
            if value < lowest:
                best, lowest = delta.detach(), value
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(current, delta)
            velocity = 0.9 * velocity + 0.1 * gradient.sign()
            candidate = project(image, delta.detach() - rate * velocity)
            if float(error(image, label, candidate).detach()) <= value:
                delta = delta.detach() - rate * velocity
            else:
                rate = max(rate / factor, 1e-20)
        results.append(image + best)
    return torch.stack(results)


def test_equals_the_released_loop() -> None:
    network, images, labels = network_and_images()
    start = start_around(images)
    expected = literal(network, images, labels, start, steps=25, factor=1.5)
    found = confidence_attack(
        log_wrong_confidence(network, labels), images, start, epsilon=0.05, step_size=0.02, steps=25
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_stays_in_the_ball_and_never_falls_below_its_start() -> None:
    network, images, labels = network_and_images()
    objective = log_wrong_confidence(network, labels)
    with torch.no_grad():
        previous = objective(torch.clamp(start_around(images), 0, 1))
    for steps in (0, 1, 3, 10, 40):
        found = confidence_attack(objective, images, start_around(images), epsilon=0.05, step_size=0.3, steps=steps)
        assert not found.requires_grad
        assert float((found - images).abs().max()) <= 0.05 + 1e-12
        assert 0 <= float(found.min()) and float(found.max()) <= 1
        with torch.no_grad():
            value = objective(found)
        assert bool((value >= previous).all())
        previous = value
    with torch.no_grad():
        assert bool((previous > objective(images)).all())


def test_only_images_that_got_worse_take_smaller_steps() -> None:
    """Image 0 can always rise; image 1 starts just above a peak and overshoots it until its steps are small enough."""
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    images[1] += 1e-5
    evaluated = []

    def objective(x: Tensor) -> Tensor:
        evaluated.append(x.detach()[:, 0, 0, 0])
        rises, peaks = x[:1].sum(dim=(1, 2, 3)), -(x[1:] - 0.5).square().sum(dim=(1, 2, 3))
        return torch.cat([rises, peaks])

    found = confidence_attack(objective, images, images, epsilon=0.4, step_size=0.005, steps=6, factor=2.0)
    places = torch.stack(evaluated)  # the start, then six candidates
    speeds = [1 - 0.9**k for k in range(1, 7)]
    torch.testing.assert_close(places[1:, 0] - places[:-1, 0], torch.tensor([0.005 * v for v in speeds]).double())
    halved = torch.tensor([-0.005 * v / 2**k for k, v in enumerate(speeds)]).double()
    torch.testing.assert_close(places[1:, 1] - places[0, 1], halved)  # every candidate refused, from the same place
    assert torch.equal(found[1], images[1])
    assert float(found[0, 0, 0, 0]) == pytest.approx(float(places[-1, 0]))


def test_a_plateau_keeps_the_start() -> None:
    images = torch.full((1, 3, 4, 4), 0.5)
    found = confidence_attack(
        lambda x: 0 * x.sum(dim=(1, 2, 3)), images, images + 0.01, epsilon=0.1, step_size=0.1, steps=3
    )
    torch.testing.assert_close(found, images + 0.01, rtol=0, atol=0)


def test_an_equal_value_is_accepted_with_its_own_gradient() -> None:
    """Across a peak and back again: steps of 1/8 from 1/16 above it, all of these numbers exact."""
    images = torch.full((1, 3, 4, 4), 0.5)
    places = []

    def objective(x: Tensor) -> Tensor:
        places.append(float(x.detach()[0, 0, 0, 0]))
        return -(x - 0.5).square().sum(dim=(1, 2, 3))

    start = images + 1 / 16
    found = confidence_attack(objective, images, start, epsilon=0.5, step_size=1 / 8, steps=3, momentum=0.0)
    assert places == [0.5625, 0.4375, 0.5625, 0.4375]
    assert torch.equal(found, start)  # none was better


def test_the_objective_is_the_largest_wrong_class_even_where_the_network_is_certain() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [300.0, 0.0, 1.0]], requires_grad=True)
    values = log_wrong_confidence(lambda x: x, torch.tensor([1, 0]))(logits)
    expected = [1 - math.log(1 + math.e**2 + math.e), -299.0]
    assert values.tolist() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient[1].tolist() == pytest.approx([-1, 0, 1])


def test_starts() -> None:
    images = torch.full((500, 3, 32, 32), 0.5)
    draws = Draws(1, 0, 500, slice(0, 500), torch.device("cpu"))
    assert float((gaussian_start(images, draws, 0.03) - images).std()) == pytest.approx(0.001868, rel=0.01)
    distance = (uniform_norm_start(images, draws, 0.03) - images).abs().amax(dim=(1, 2, 3))
    assert float(distance.min()) >= 0 and float(distance.max()) <= 0.03
    assert float(distance.mean()) == pytest.approx(0.015, abs=0.001)
    assert float(distance.std()) == pytest.approx(0.03 / math.sqrt(12), rel=0.05)

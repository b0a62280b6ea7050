"""What the attacks' tests share: models whose worst point is known, and the properties that every attack must have."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from flss_edge.attacks import Attack, Victim
from flss_edge.attacks.objectives import margin
from flss_edge.minibatch import Draws

SIZE = 4  # pixels a side
PIXELS = 3 * SIZE * SIZE


def draws_for(count: int, dtype: torch.dtype = torch.float64, seed: int = 0, rows: slice | None = None) -> Draws:
    return Draws(seed, 0, count, rows or slice(0, count), torch.device("cpu"), dtype)


@dataclass(frozen=True)
class Opposed:
    """A linear model of two opposed classes, z = (w x, -w x), and further classes that are constant and never win.

    Every increasing function of the margin has the same best corner of a box, so every attack must reach that one.
    """

    weights: Tensor  # (PIXELS,)
    constants: tuple[float, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        towards = (images.flatten(1) - 0.5) @ self.weights
        rest = [torch.full_like(towards, value) for value in self.constants]
        return torch.stack([towards, -towards, *rest], dim=1)

    def worst(self, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """The corner of (ball and [0, 1]) with the largest margin against labels 0 and 1."""
        away = torch.where(labels == 0, -1.0, 1.0)[:, None] * self.weights.sign()
        return (images + epsilon * away.reshape(images.shape)).clamp(0, 1)


def opposed(classes: int = 2, dtype: torch.dtype = torch.float64) -> Opposed:
    weights = torch.randn(PIXELS, generator=torch.Generator().manual_seed(classes), dtype=dtype) / 4
    return Opposed(weights, (-7.0, -9.0, -8.0, -8.5)[: classes - 2])


def curved(classes: int = 4, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network of one hidden layer, with weights so large that its objectives have many local maxima."""
    generator = torch.Generator().manual_seed(classes)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 12), nn.Tanh(), nn.Linear(12, classes))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=1 if parameter.dim() > 1 else 0.5, generator=generator)
    return network.to(dtype).eval()


def images_with_corners(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Random images, a third of whose pixels are 0 and a third 1."""
    generator = torch.Generator().manual_seed(seed)
    images = 3 * torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=dtype) - 1
    return images.clamp(0, 1)


@dataclass(frozen=True)
class Case:
    """One input of an attack."""

    images: Tensor
    labels: Tensor
    epsilon: float
    victim: nn.Module
    draws: Draws


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Inputs of every kind: one image or several, both types, corners, two classes and more, radii from 0 to 2."""
    seed, count, classes = draw(st.integers(0, 2**31)), draw(st.integers(1, 3)), draw(st.sampled_from((2, 3, 4, 6)))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    epsilon = draw(st.sampled_from((0.0, 1e-6, 8 / 255, 2.0)) | st.floats(0.0, 1.0))
    images = draw(
        st.sampled_from((images_with_corners(count, dtype, seed), torch.zeros(count, 3, SIZE, SIZE, dtype=dtype)))
    )
    labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))
    return Case(images, labels, epsilon, curved(classes, dtype), draws_for(count, dtype, seed))


def assert_inside(attack: Attack, case: Case) -> None:
    """Inside the ball and the pixel range, of the same kind, nothing written; without a radius nothing moves."""
    before = case.images.clone()
    found = attack(case.victim, case.images, case.labels, epsilon=case.epsilon, draws=case.draws)
    assert found.shape == before.shape and found.dtype == before.dtype
    assert not found.requires_grad
    assert float((found - before).abs().max()) <= case.epsilon + 1e-7
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    assert torch.equal(case.images, before)
    assert all(parameter.grad is None for parameter in case.victim.parameters())
    still = attack(case.victim, case.images, case.labels, epsilon=0.0, draws=case.draws)
    assert torch.equal(still, before)


def assert_reaches_the_worst_point(attack: Attack, classes: int) -> None:
    """Clean images next to the decision, corners of the pixel range among their pixels."""
    model, images, labels = opposed(classes), images_with_corners(6), torch.arange(6) % 2
    for epsilon in (8 / 255, 0.3):
        found = attack(model, images, labels, epsilon=epsilon, draws=draws_for(6))
        worst = margin(model(model.worst(images, labels, epsilon)), labels)
        torch.testing.assert_close(margin(model(found), labels), worst, rtol=0, atol=1e-4)
        assert bool((worst > margin(model(images), labels) + 0.1).all())  # there was something to find


def assert_each_image_on_its_own(attack: Attack, epsilon: float = 0.1) -> None:
    """The whole batch at once, and divided."""
    victim, images, labels = curved(), images_with_corners(7), torch.arange(7) % 4
    whole = attack(victim, images, labels, epsilon=epsilon, draws=draws_for(7))
    parts = [
        attack(victim, images[rows], labels[rows], epsilon=epsilon, draws=draws_for(7, rows=rows))
        for rows in (slice(0, 1), slice(1, 5), slice(5, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


def assert_repeats(attack: Attack, *, random: bool = True, epsilon: float = 0.1) -> None:
    """The draws alone decide, not torch's own random state, which stays as it is."""
    victim, images, labels = curved(), images_with_corners(5), torch.arange(5) % 4
    state = torch.random.get_rng_state()
    first = attack(victim, images, labels, epsilon=epsilon, draws=draws_for(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(attack(victim, images, labels, epsilon=epsilon, draws=draws_for(5)), first)
    other = attack(victim, images, labels, epsilon=epsilon, draws=draws_for(5, seed=1))
    assert torch.equal(other, first) != random


def assert_averages_draws(attack: Attack, epsilon: float = 0.1) -> None:
    """A random victim whose draws happen to be equal is attacked as a plain one."""
    victim, images, labels = curved(), images_with_corners(5), torch.arange(5) % 4
    plain = attack(victim, images, labels, epsilon=epsilon, draws=draws_for(5))
    several = attack(drawn_thrice(victim), images, labels, epsilon=epsilon, draws=draws_for(5))
    torch.testing.assert_close(several, plain, rtol=0, atol=1e-9)


def drawn_thrice(victim: Victim) -> Victim:
    return lambda images: torch.stack([victim(images)] * 3)


@dataclass
class PassCounter:
    """Counts, by hooks, the images that went forward and backward through a network."""

    network: nn.Module
    forward: int = field(default=0, init=False)
    backward: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.network.register_forward_hook(self._forward)
        self.network.register_full_backward_hook(self._backward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forward += len(inputs[0])

    def _backward(self, module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self.backward += len(outputs[0])


def passes_of(attack: Attack, count: int = 3, classes: int = 10) -> tuple[float, float]:
    """Forward and backward passes an image of one attack."""
    network = curved(classes)
    counter = PassCounter(network)
    images, labels = images_with_corners(count), torch.arange(count) % classes
    attack(network, images, labels, epsilon=0.1, draws=draws_for(count))
    return counter.forward / count, counter.backward / count

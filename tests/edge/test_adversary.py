"""PGD against a linear oracle, its budget, and what it does not compute."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from flss_edge.adversary import cross_entropy_of, pgd, uniform_start
from flss_edge.data import ImageSet
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, ModelConfig
from flss_edge.recipes import recipe_named

from .small_runs import OFFICIAL_MODEL, bars


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.5), st.floats(0.0, 0.2), st.integers(0, 5))
def test_iterates_stay_in_the_ball_and_the_pixel_range(seed: int, epsilon: float, step: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 4, 4, generator=generator)
    weights = torch.randn(48, 5, generator=generator)
    labels = torch.randint(0, 5, (3,), generator=generator)
    objective = cross_entropy_of(lambda x: x.flatten(1) @ weights, labels)
    start = images + torch.randn(3, 3, 4, 4, generator=generator)  # far outside
    perturbed = pgd(objective, images, start, epsilon=epsilon, step_size=step, steps=steps)
    assert float((perturbed - images).abs().max()) <= epsilon + 1e-6
    assert float(perturbed.min()) >= 0
    assert float(perturbed.max()) <= 1
    assert not perturbed.requires_grad


def test_reaches_the_worst_point_of_a_linear_model() -> None:
    """Two classes, linear logits: the worst point is the image moved by epsilon against the sign of the weights."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(48, 2, generator=generator)
    images = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 2, (6,), generator=generator)
    start = uniform_start(images, torch.rand(images.shape, generator=generator), 0.1)
    objective = cross_entropy_of(lambda x: x.flatten(1) @ weights, labels)
    perturbed = pgd(objective, images, start, epsilon=0.1, step_size=0.05, steps=10)
    towards = (weights[:, 1] - weights[:, 0]).sign().reshape(3, 4, 4)
    worst = images + 0.1 * torch.where(labels == 0, 1.0, -1.0)[:, None, None, None] * towards
    torch.testing.assert_close(perturbed, worst, rtol=0, atol=1e-6)


def test_the_start_is_uniform_in_the_ball_and_kept_without_steps() -> None:
    numbers = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = torch.full((8, 3, 16, 16), 0.5)
    start = uniform_start(images, numbers, 0.1)
    assert float(start.min()) == pytest.approx(0.4, abs=1e-3)
    assert float(start.max()) == pytest.approx(0.6, abs=1e-3)
    assert float(start.std()) == pytest.approx(0.2 / 12**0.5, rel=0.02)

    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    assert torch.equal(pgd(never, images, start, epsilon=0.1, step_size=0.1, steps=0), start)


class WeightGradients(TorchDispatchMode):
    """Counts the backward operations that compute the gradient of a weight matrix or kernel."""

    def __init__(self, model: FLSS) -> None:
        super().__init__()
        self.matrices = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
        self.count = self.kernels = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution_backward.default:
            self.kernels += 1
            self.count += bool(args[-1][1])
        elif function is torch.ops.aten.mm.default:
            self.count += tuple(result.shape) in self.matrices
        elif function is torch.ops.aten.native_batch_norm_backward.default:
            self.count += bool(args[-1][1])
        return result


def attacked(count: int = 5) -> tuple[FLSS, Minibatch]:
    torch.manual_seed(0)
    model = FLSS(OFFICIAL_MODEL).eval()
    draws = Draws(0, 0, count, slice(0, count), torch.device("cpu"))
    labels = torch.arange(count) % 3
    return model, Minibatch(torch.rand(count, 3, 16, 16), labels, draws, progress=0.5, nominal=count)


@pytest.mark.parametrize("name", ["official", "plus"])
def test_a_recipes_attack_computes_no_weight_gradient(name: str) -> None:
    """Neither stored, nor computed and thrown away."""
    from flss_edge import batch_norm

    model, batch = attacked()
    batch_norm.add_second(model)
    recipe = recipe_named(name)
    assert recipe.attack is not None
    fired: list[str] = []
    for label, parameter in model.named_parameters():
        parameter.register_hook(lambda _, label=label: fired.append(label))
    with WeightGradients(model) as inside:
        perturbed = recipe.attack(model, batch, recipe.config)
    assert inside.kernels > 0
    assert inside.count == 0
    assert not fired
    assert all(parameter.grad is None for parameter in model.parameters())
    assert perturbed.perturbed is not None and not perturbed.perturbed.requires_grad
    with WeightGradients(model) as outside:  # what the test would see
        cross_entropy_of(model, batch.labels)(batch.images).backward()  # type: ignore[no-untyped-call]
    assert outside.count > outside.kernels > 0
    assert fired


def test_selection_attacks_within_the_budget_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    model, images = FLSS(ModelConfig(num_classes=3, width=4, image_size=16, blocks=(1,))), bars(30, 0)
    state = torch.random.get_rng_state()
    first = pgd_accuracy(model, images, epsilon=8 / 255, step_size=2 / 255, steps=3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pgd_accuracy(model, images, epsilon=8 / 255, step_size=2 / 255, steps=3, seed=5) == first
    assert pgd_accuracy(model, images, epsilon=0.0, step_size=0.1, steps=2) == accuracy(model, images)
    assert first <= accuracy(model, images)
    asked: list[int] = []
    several = ImageSet(images.images.repeat(20, axis=0), images.labels.repeat(20), images.class_names, "x")
    accuracy(model, several, between_batches=lambda: asked.append(1))
    assert len(asked) == 3  # 600 images

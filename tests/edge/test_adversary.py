"""PGD against a linear oracle, and its budget."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_edge.adversary import pgd
from flss_edge.model import FLSS, ModelConfig


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.5), st.floats(0.0, 0.2), st.integers(0, 5))
def test_iterates_stay_in_the_ball_and_the_pixel_range(seed: int, epsilon: float, step: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 4, 4, generator=generator)
    weights = torch.randn(48, 5, generator=generator)
    labels = torch.randint(0, 5, (3,), generator=generator)
    perturbed = pgd(
        lambda x: x.flatten(1) @ weights,
        images,
        labels,
        epsilon=epsilon,
        step_size=step,
        steps=steps,
        generator=generator,
    )
    assert float((perturbed - images).abs().max()) <= epsilon + 1e-6
    assert float(perturbed.min()) >= 0
    assert float(perturbed.max()) <= 1


def test_reaches_the_worst_point_of_a_linear_model() -> None:
    """Two classes, linear logits: the worst point is the image moved by epsilon against the sign of the weights."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(48, 2, generator=generator)
    images = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 2, (6,), generator=generator)
    perturbed = pgd(
        lambda x: x.flatten(1) @ weights, images, labels, epsilon=0.1, step_size=0.05, steps=10, generator=generator
    )
    towards = (weights[:, 1] - weights[:, 0]).sign().reshape(3, 4, 4)
    worst = images + 0.1 * torch.where(labels == 0, 1.0, -1.0)[:, None, None, None] * towards
    torch.testing.assert_close(perturbed, worst, rtol=0, atol=1e-6)


def test_no_weight_gradient_is_computed() -> None:
    model = FLSS(ModelConfig(width=4)).eval()
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    generator = torch.Generator().manual_seed(0)
    pgd(model, images, labels, epsilon=0.03, step_size=0.01, steps=2, generator=generator)
    assert all(parameter.grad is None for parameter in model.parameters())

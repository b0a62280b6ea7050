"""Golden values of docs/method.md section 2, gradients against finite differences, and the schedules."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.losses import kl_between, kl_of_logits, kl_to_prior, vote_margin_loss
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import TrainConfig
from flss_edge.schedule import exponential, stepwise, triangular


def column(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def test_kl_between_golden_value() -> None:
    value = kl_between(column(0.5), column(0.0), column(0.0), column(math.log(4)), batch_size=1)
    assert float(value) == pytest.approx(0.349397, abs=1e-6)


def test_kl_to_prior_golden_value() -> None:
    assert float(kl_to_prior(column(0.5), column(0.0), batch_size=1)) == pytest.approx(0.125, abs=1e-12)


def test_kl_terms_equal_torchs_distributions() -> None:
    a, b, c, d = torch.randn(4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, q = (torch.distributions.Normal(mean, (0.5 * logvar).exp()) for mean, logvar in ((a, b), (c, d)))
    prior = torch.distributions.Normal(torch.zeros_like(a), torch.ones_like(a))
    between = torch.distributions.kl_divergence(p, q).sum() / 5
    to_prior = torch.distributions.kl_divergence(p, prior).sum() / 5
    torch.testing.assert_close(kl_between(a, b, c, d, 5), between, rtol=0, atol=1e-10)
    torch.testing.assert_close(kl_to_prior(a, b, 5), to_prior, rtol=0, atol=1e-10)


def test_kl_of_logits_golden_value_and_direction() -> None:
    mean = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log() + 5  # a constant changes nothing
    sampled = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert float(kl_of_logits(mean, sampled)) == pytest.approx(0.085123, abs=1e-6)
    assert float(kl_of_logits(mean, sampled)) / 3 == pytest.approx(0.028374, abs=1e-6)  # the released 'mean'
    assert float(kl_of_logits(sampled, mean)) == pytest.approx(0.092033, abs=1e-6)
    assert float(kl_of_logits(mean.repeat(4, 1), sampled.repeat(4, 1))) == pytest.approx(0.085123, abs=1e-6)


def test_kl_of_logits_is_finite_where_a_class_has_no_probability() -> None:
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    value = kl_of_logits(certain, torch.tensor([[0.0, 0.0]]))
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(math.log(2))
    assert certain.grad is not None and bool(certain.grad.isfinite().all())


def test_latent_terms_sum_over_dimensions_and_divide_by_the_given_batch_size() -> None:
    mean, logvar = torch.full((4, 6), 0.5), torch.zeros(4, 6)
    assert float(kl_to_prior(mean, logvar, 4)) == pytest.approx(6 * 0.125)
    assert float(kl_to_prior(mean, logvar, 128)) == pytest.approx(4 * 6 * 0.125 / 128)


def margin(sampled_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The soft vote margin that the loss is made of."""
    return 2 * torch.exp(-vote_margin_loss(sampled_logits, labels, temperature)) - 1


def test_vote_margin_loss_golden_values() -> None:
    logits = torch.log(torch.tensor([[[0.7, 0.2, 0.1]], [[0.3, 0.6, 0.1]]], dtype=torch.float64))  # two samples
    labels = torch.tensor([0])
    assert float(vote_margin_loss(logits, labels, 1.0)) == pytest.approx(-math.log((1 + 0.5 - 0.4) / 2))
    # at a low temperature every sample votes for its arg-max alone: one vote each, and then two against none
    assert float(vote_margin_loss(logits, labels, 0.01)) == pytest.approx(math.log(2), abs=1e-9)
    both = torch.stack([logits[0], logits[0]])
    assert float(vote_margin_loss(both, labels, 0.01)) == pytest.approx(0.0, abs=1e-9)
    assert float(margin(both, torch.tensor([2]), 0.01)) == pytest.approx(-1.0, abs=1e-9)


def test_the_soft_vote_margin_is_the_vote_share_of_a_cold_vote() -> None:
    """Five samples, three classes: three votes for class 0, two for class 2."""
    votes = torch.tensor([0, 2, 0, 0, 2])
    logits = functional.one_hot(votes, 3).double()[:, None].repeat(1, 3, 1)  # (N, B, K), thrice the same image
    assert margin(logits, torch.tensor([0, 1, 2]), 1e-3).tolist() == pytest.approx([0.2, -0.6, -0.2], abs=1e-9)
    assert float(margin(logits, torch.tensor([0, 1, 2]), 1e3).abs().max()) < 1e-3
    unit = margin(logits[:1], torch.tensor([0, 1, 2]), 1.0)
    assert float(unit[0]) == pytest.approx((math.e - 1) / (math.e + 2))


def test_hopeless_images_keep_a_gradient() -> None:
    """In float32, where 1 + m is 0 by rounding: every sample prefers a wrong class by 20 logits."""
    logits = torch.tensor([0.0, 20.0, 0.0]).repeat(16, 4, 1).requires_grad_()
    loss = vote_margin_loss(logits, torch.zeros(4, dtype=torch.long), temperature=0.5)
    assert bool(loss.isfinite().all()) and float(loss.detach().min()) > 30
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert float(logits.grad[..., 0].max()) < -0.01  # more of the true class would lower the loss of each image


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b, c, d = (torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(4))
    assert torch.autograd.gradcheck(lambda x, y: kl_to_prior(x, y, 2), (a, b))
    assert torch.autograd.gradcheck(lambda *x: kl_between(*x, batch_size=2), (a, b, c, d))
    assert torch.autograd.gradcheck(kl_of_logits, (a, b))  # no stop-gradient on either side
    samples = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: vote_margin_loss(x, torch.tensor([2, 0]), 0.5), (samples,))


@pytest.mark.parametrize(
    ("step", "total", "lr", "momentum"),
    [
        (0, 45_960, 0.0, 0.9),
        (11_490, 45_960, 0.05, 0.85),
        (22_980, 45_960, 0.1, 0.8),
        (45_959, 45_960, 4.35e-6, 0.9),
        (22_320, 44_640, 0.1, 0.8),
    ],
)
def test_triangular_golden_values(step: int, total: int, lr: float, momentum: float) -> None:
    got_lr, got_momentum = triangular(step, total, 0.1, (0.9, 0.8))
    assert got_lr == pytest.approx(lr, rel=1e-3, abs=1e-12)
    assert got_momentum == pytest.approx(momentum, abs=1e-5)


def parameter_and_optimizer(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.0)


def test_triangular_equals_torchs_cyclic_scheduler() -> None:
    optimizer = parameter_and_optimizer(0.1)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.0, max_lr=0.1, step_size_up=20)
    for step in range(40):
        lr, momentum = triangular(step, 40, 0.1, (0.9, 0.8))
        group = optimizer.param_groups[0]
        assert (lr, momentum) == pytest.approx((group["lr"], group["momentum"]), abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("epochs", [110, 76, 7])
def test_stepwise_equals_torchs_scheduler_at_every_mini_batch(epochs: int) -> None:
    """Milestones that are whole epochs, given as fractions."""
    milestones = [round(0.7 * epochs), epochs - 1]
    config = TrainConfig(epochs=epochs, lr_milestones=tuple(m / epochs for m in milestones), peak_lr=0.05, momentum=0.7)
    optimizer = parameter_and_optimizer(0.05)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for epoch in range(epochs):
        for step in (3 * epoch, 3 * epoch + 2):
            assert config.learning_rate(step, 3) == (pytest.approx(optimizer.param_groups[0]["lr"]), 0.7)
        optimizer.step()
        scheduler.step()
    assert stepwise(0.999, 0.1, (), 0.1) == 0.1


def test_exponential_equals_torchs_scheduler() -> None:
    config = TrainConfig(schedule="exponential", epochs=20, peak_lr=0.1, lr_final=0.01)
    optimizer = parameter_and_optimizer(0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / 20))
    for epoch in range(20):
        for step in (5 * epoch, 5 * epoch + 4):
            assert config.learning_rate(step, 5) == (pytest.approx(optimizer.param_groups[0]["lr"]), 0.9)
        optimizer.step()
        scheduler.step()
    assert exponential(1.0, 0.1, 0.01) == pytest.approx(0.001)


def test_the_radius_of_plus_rises_linearly() -> None:
    plus = recipe_named("plus").config
    radius = plus.radius  # type: ignore[attr-defined]
    assert [radius(progress) for progress in (0, 0.3, 0.6, 0.9)] == pytest.approx([0.25, 0.625, 1, 1])
    assert recipe_named("official").config.radius(0.0) == 1  # type: ignore[attr-defined]

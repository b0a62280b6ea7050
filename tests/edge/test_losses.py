"""Golden values of docs/method.md section 2, and gradients against finite differences."""

import math

import pytest
import torch

from flss_edge.losses import consistency, kl_between, kl_to_prior
from flss_edge.schedule import triangular


def column(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def test_kl_between_golden_value() -> None:
    value = kl_between(column(0.5), column(0.0), column(0.0), column(math.log(4)), batch_size=1)
    assert float(value) == pytest.approx(0.349397, abs=1e-6)


def test_kl_to_prior_golden_value() -> None:
    assert float(kl_to_prior(column(0.5), column(0.0), batch_size=1)) == pytest.approx(0.125, abs=1e-12)


def test_consistency_golden_value_and_direction() -> None:
    mean = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    sampled = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert float(consistency(sampled, mean)) == pytest.approx(0.028374, abs=1e-6)
    assert 3 * float(consistency(sampled, mean)) == pytest.approx(0.085123, abs=1e-6)
    assert 3 * float(consistency(mean, sampled)) == pytest.approx(0.092033, abs=1e-6)


def test_latent_terms_sum_over_dimensions_and_divide_by_the_given_batch_size() -> None:
    mean, logvar = torch.full((4, 6), 0.5), torch.zeros(4, 6)
    assert float(kl_to_prior(mean, logvar, 4)) == pytest.approx(6 * 0.125)
    assert float(kl_to_prior(mean, logvar, 128)) == pytest.approx(4 * 6 * 0.125 / 128)


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b, c, d = (torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(4))
    assert torch.autograd.gradcheck(lambda x, y: kl_to_prior(x, y, 2), (a, b))
    assert torch.autograd.gradcheck(lambda *x: kl_between(*x, batch_size=2), (a, b, c, d))
    assert torch.autograd.gradcheck(consistency, (a, b))  # no stop-gradient on either side


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
def test_schedule_golden_values(step: int, total: int, lr: float, momentum: float) -> None:
    got_lr, got_momentum = triangular(step, total, 0.1, (0.9, 0.8))
    assert got_lr == pytest.approx(lr, rel=1e-3, abs=1e-12)
    assert got_momentum == pytest.approx(momentum, abs=1e-5)


def test_schedule_equals_torchs_cyclic_scheduler() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.0, max_lr=0.1, step_size_up=20)
    for step in range(40):
        lr, momentum = triangular(step, 40, 0.1, (0.9, 0.8))
        group = optimizer.param_groups[0]
        assert (lr, momentum) == pytest.approx((group["lr"], group["momentum"]), abs=1e-12)
        optimizer.step()
        scheduler.step()

"""Transfer: the source's own adversarial images, the victim left out of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.attacks.gama import gama_pgd
from flss_edge.attacks.pgd import fgsm, pgd_attack
from flss_edge.attacks.transfer import METHODS, transfer
from flss_runtime.errors import UsageError

from . import attack_cases
from .attack_cases import Case, PassCounter, cases, curved, draws_for, images_with_corners

DIRECT: dict[str, Attack] = {"fgsm": fgsm, "pgd-7": partial(pgd_attack, steps=7), "gama-pgd": gama_pgd}
STEPS = {"fgsm": 1, "pgd-7": 7, "gama-pgd": 100}


def not_to_be_asked(images: Tensor) -> Tensor:
    raise AssertionError("the victim was asked")


@pytest.mark.parametrize("method", METHODS)
def test_is_the_attack_on_the_source_and_asks_the_victim_nothing(method: str) -> None:
    source, images, labels = curved(), images_with_corners(6), torch.arange(6) % 4
    counter = PassCounter(source)
    found = transfer(not_to_be_asked, images, labels, epsilon=0.1, draws=draws_for(6), source=source, method=method)
    assert counter.backward == 6 * STEPS[method]
    assert torch.equal(found, DIRECT[method](source, images, labels, epsilon=0.1, draws=draws_for(6)))
    assert bool((found != images).any())


def test_has_all_of_the_papers_methods() -> None:
    assert set(METHODS) == set(DIRECT)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(case: Case) -> None:
    attack_cases.assert_inside(partial(transfer, source=case.victim, method="pgd-7"), case)


def test_attacks_each_image_on_its_own_and_repeats() -> None:
    attack = partial(transfer, source=curved(5), method="pgd-7")
    attack_cases.assert_each_image_on_its_own(attack)
    attack_cases.assert_repeats(attack)


def test_refuses_unknown_methods() -> None:
    images, labels = images_with_corners(2), torch.arange(2)
    with pytest.raises(UsageError, match=r"method is 'pgd'\n.*fgsm, pgd-7, gama-pgd"):
        transfer(curved(), images, labels, epsilon=0.1, draws=draws_for(2), source=curved(), method="pgd")

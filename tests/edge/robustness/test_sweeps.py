"""A sweep over the radius keeps what an attack is made of."""

from __future__ import annotations

from typing import Any, cast

import torch

from flss_edge.attacks import PlannedAttack
from flss_edge.attacks.suites import unperturbed
from flss_edge.robustness.sweeps import swept


def test_the_starts_of_an_attack_follow_the_radius() -> None:
    plan = [
        PlannedAttack("clean", unperturbed, 0.0, groups=("clean",)),
        PlannedAttack("pgd", unperturbed, 8 / 255),
        PlannedAttack("vote:accepted-wrong", unperturbed, 8 / 255, "vote", starts=("pgd",)),
    ]
    nothing = cast(Any, None)
    _, wide = swept("epsilon", nothing, plan, nothing, budget=0.1, device=torch.device("cpu"))
    by_name = {attack.name: attack for attack in wide}
    begun = [attack for attack in wide if attack.starts]
    assert len(begun) > 3
    for attack in begun:
        (start,) = attack.starts
        assert by_name[start].epsilon == attack.epsilon
        assert list(by_name).index(start) < list(by_name).index(attack.name)

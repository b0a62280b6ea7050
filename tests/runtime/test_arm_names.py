"""Names of arms, and which of them a bundle has graphs for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flss_runtime.arm_names import ArmName, all_arms, check_arms, parse_arm, primary_arm
from flss_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deterministic", (None, None, None)),
        ("control", (None, None, None)),
        ("n1", (1, "latent", None)),
        ("n100-two-graphs", (100, "latent", False)),
        ("n100-fused", (100, "latent", True)),
        ("n20-logit", (20, "logit", None)),
        ("n100-deterministic", (100, "deterministic", None)),
    ],
)
def test_what_a_name_says(text: str, expected: tuple[Any, ...]) -> None:
    assert parse_arm(text) == ArmName(text, *expected)


@pytest.mark.parametrize("text", ["", "100", "n0", "n", "n-1", "n100-", "n100-none", "N100", "n1 "])
def test_no_names(text: str) -> None:
    with pytest.raises(UsageError, match="there is no arm"):
        parse_arm(text)


def test_the_baseline_is_always_there_and_each_arm_once() -> None:
    assert check_arms(["n1", "deterministic", "control", "n1"]) == ["n1", "control"]
    with pytest.raises(UsageError, match="no classifier"):
        check_arms(["control", "deterministic"])


def bundle(**precisions: tuple[str, ...]) -> Any:
    return SimpleNamespace(precisions=lambda role: precisions.get(role, ()))


def test_arms_are_those_the_bundle_has_graphs_for() -> None:
    assert all_arms(bundle(), 100) == ["n1", "n10", "n100", "n1000"]
    several = bundle(fused=("fp32", "int8"), logit=("fp32",))
    assert all_arms(several, 50)[5:] == ["n50-two-graphs", "n50-logit", "n50-deterministic"]
    assert all_arms(several, 50)[:5] == ["n1", "n10", "n50", "n100", "n1000"]
    assert all_arms(several, 50, "int8")[5:] == ["n50-two-graphs"], "in the precision that is measured"


def test_the_verdict_is_about_the_samples_asked_for_and_never_about_the_control() -> None:
    assert primary_arm(["n1", "n100", "n100-logit", "control"], 100) == "n100"
    assert primary_arm(["n1", "n100-logit", "control"], 100) == "n100-logit"


@pytest.mark.parametrize("text", ["n1000001", "n12345678", "n100000000-logit"])
def test_more_samples_than_can_vote(text: str) -> None:
    assert parse_arm("n1000000").num_samples == 1_000_000
    with pytest.raises(UsageError, match="at most 1,000,000 latent samples"):
        parse_arm(text)

from __future__ import annotations

import pytest
import torch
from torch import nn

from flss_edge.attacks.suites import ADAPTIVE, ENTRIES, SUITES, SuiteSettings, planned
from flss_edge.minibatch import Draws
from flss_runtime.errors import UsageError

EPSILON = 8 / 255
AGAINST = {"vote": ("accepted-wrong", "accepted-wrong-closed", "wrong-majority", "rejection")}


def settings(**changed: object) -> SuiteSettings:
    return SuiteSettings(**{"epsilon": EPSILON, "against": AGAINST, **changed})  # type: ignore[arg-type]


def names(*suites: str, **changed: object) -> list[str]:
    return [attack.name for attack in planned(suites, settings(**changed))]


def test_the_papers_suites() -> None:
    assert names("paper") == [
        *("clean", "pgd", "apgd-ce", "apgd-dlr", "pgd-cw", "gama-pgd"),
        *("gama-mt-2", "gama-mt-3", "gama-mt-4", "gama-mt-5", "gama-mt-untargeted"),
    ]
    assert names("paper-second") == ["clean", "pgd", "apgd-ce", "apgd-dlr", "fab", "square"]
    assert names("autoattack") == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]


def test_the_adaptive_suite_attacks_every_radius_of_rejection() -> None:
    plan = {attack.name: attack for attack in planned(["adaptive"], settings())}
    radii = [plan[f"vote:rejection{at}"].epsilon / EPSILON for at in ("@0.05", "@0.1", "@0.25", "@0.5", "")]
    assert radii == pytest.approx([0.05, 0.1, 0.25, 0.5, 1])
    assert plan["vote:accepted-wrong"].victim == "vote" and plan["vote:accepted-wrong"].passes == 9 * 2 * 50


def test_in_suite_all_the_adaptive_attacks_begin_at_the_papers_six_too() -> None:
    plan = {attack.name: attack for attack in planned(["all"], settings())}
    six = ("pgd", "apgd-ce", "apgd-dlr", "pgd-cw", "gama-pgd", "gama-mt-untargeted")
    assert plan["vote:accepted-wrong"].starts == plan["vote:wrong-majority"].starts == six
    assert plan["vote:accepted-wrong"].passes == 9 * (2 + 6) * 50
    order = list(plan)
    assert max(map(order.index, six)) < order.index("vote:accepted-wrong")
    assert plan["vote:rejection"].starts == plan["pgd"].starts == ()
    assert all(attack.starts == () for attack in planned(["adaptive", "paper"], settings()))


@pytest.mark.parametrize("suites", [("quick", "all"), ("all", "adaptive"), ("adaptive", "quick", "all")])
def test_the_strongest_suite_says_how_an_attack_of_several_runs(suites: tuple[str, ...]) -> None:
    plan = {attack.name: attack for attack in planned(suites, settings())}
    attack = plan["vote:accepted-wrong"]
    assert set(attack.groups) == set(suites) and attack.passes == 9 * (2 + 6) * 50 and len(attack.starts) == 6
    weaker = {attack.name: attack for attack in planned(("quick", "adaptive"), settings())}
    assert weaker["vote:accepted-wrong"].passes == 9 * 2 * 50


def test_an_attack_of_two_suites_runs_once_and_counts_for_both() -> None:
    plan = {attack.name: attack for attack in planned(["paper", "paper-second", "fab"], settings())}
    assert plan["pgd"].groups == ("paper", "paper-second") and plan["fab"].groups == ("paper-second", "fab")
    assert plan["clean"].groups == ("clean",) and next(iter(plan)) == "clean"


def test_all_has_everything_that_it_is_given() -> None:
    pool = (torch.rand(4, 3, 8, 8), torch.arange(4))
    everything = names("all", sources={"standard": nn.Identity()}, guides=pool)
    assert {name for name in ENTRIES if name != "pgd-20"} <= set(everything)
    assert {"transfer:standard:fgsm", "features:kl:nearest", "vote:rejection@0.5"} <= set(everything)
    assert not [name for name in names("all", guides=pool, gaussian=False) if "kl" in name]
    assert len(set(everything)) == len(everything)


def test_settings_reach_the_attack() -> None:
    seen = []

    def victim(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.stack([images.sum(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)

    (_, attack) = planned(["pgd"], settings(changed={"pgd": {"steps": "7"}}))
    draws = Draws(0, 0, 2, slice(0, 2), torch.device("cpu"))
    attack.run(victim, torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), epsilon=EPSILON, draws=draws)
    assert len(seen) == attack.passes == 7
    assert planned(["pgd"], settings(samples=5))[1].samples == 5


@pytest.mark.parametrize(
    ("attack", "setting", "text", "words"),
    [
        ("pgd", "stepps", "3", "it has steps"),
        ("pgd", "steps", "3.5", "no int"),
        ("pgd", "steps", "0", "above 0"),
        ("square", "stop", "no", "no bool"),
        ("fab", "steps", "3", "does not run"),
        ("rejection", "temperature", "cold", "no float"),
    ],
)
def test_wrong_settings(attack: str, setting: str, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(["pgd", "square", "adaptive"], settings(changed={attack: {setting: text}}))
    assert words in f"{caught.value.problem} {caught.value.fix}"


def test_few_queries_still_count_as_a_pass() -> None:
    (clean, attack) = planned(["square"], settings(changed={"square": {"queries": "2"}}))
    assert (clean.passes, attack.passes) == (1, 1)


def test_a_switch_can_be_turned_off() -> None:
    (_, attack) = planned(["square"], settings(changed={"square": {"stop": "False"}}))
    assert attack.run.keywords["stop"] is False  # type: ignore[attr-defined]


def test_unknown_suites_and_no_radius() -> None:
    with pytest.raises(UsageError, match="no suite 'papper'"):
        names("papper")
    with pytest.raises(UsageError, match="epsilon is 0"):
        names("paper", epsilon=0.0)


def test_every_suite_and_adaptive_attack_is_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    assert [name for name in (*SUITES, *ADAPTIVE) if f"`{name}`" not in text] == []

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.attacks import PlannedAttack, Victim
from flss_edge.attacks.pgd import pgd_attack
from flss_edge.attacks.suites import unperturbed
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS, ModelConfig
from flss_edge.robustness.campaign import Campaign, Outcome, Step
from flss_edge.robustness.state import State
from flss_runtime.errors import CheckFailed

EPSILON = 8 / 255


def few_steps(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
    return pgd_attack(victim, images, labels, epsilon=epsilon, draws=draws, steps=2)


def brighter(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
    return images + 0.1


def count_wrong(images: Tensor, labels: Tensor, attacked: dict[str, Tensor], draws: Draws, first: int) -> dict:  # type: ignore[type-arg]
    moved = (attacked["pgd"] - images).abs().amax(dim=(1, 2, 3)).cpu().numpy() > 0
    return {"moved": moved, "first": np.full(len(labels), first >= 3 * 10)}


@pytest.fixture
def campaign() -> Campaign:
    torch.manual_seed(0)
    network = FLSS(ModelConfig(num_classes=3, width=4, image_size=16)).eval()
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(10) % 3
    plan = (
        PlannedAttack("clean", unperturbed, 0.0, groups=("clean",)),
        PlannedAttack("pgd", few_steps, EPSILON, groups=("small",), passes=2),
        PlannedAttack("vote:pgd", few_steps, EPSILON, victim="vote", groups=("small",), samples=2, passes=4),
    )
    return Campaign(
        plan,
        (Vote(network, "vote", 20, 2.0, threshold=12, seed=3), Confidence(network, "no-sampling")),
        (network,),
        ImageSet(images, labels, ("a", "b", "c"), "noise"),
        {"moved": count_wrong},
        seed=1,
        batch_size=4,
        device=torch.device("cpu"),
    )


def finished(campaign: Campaign, state: State, **part: int) -> Outcome:
    list(campaign.run(state, **part))
    return campaign.outcome(state)


def same(one: Outcome, other: Outcome) -> bool:
    pairs = [
        (one.answers[name][attack], other.answers[name][attack]) for name in one.answers for attack in one.answers[name]
    ]
    return all(
        np.array_equal(a.labels, b.labels)
        and np.array_equal(a.scores, b.scores)
        and np.array_equal(a.accepted, b.accepted)
        for a, b in pairs
    )


def test_every_classifier_answers_every_attack_on_every_image(campaign: Campaign) -> None:
    steps = list(campaign.run(State()))
    assert [step.attack for step in steps] == ["clean", "pgd", "vote:pgd"] * 3
    assert sum(step.images * step.passes for step in steps) == campaign.passes == 10 * 7
    outcome = finished(campaign, State())
    every = ["clean", "pgd", "vote:pgd"]
    assert {name: list(of) for name, of in outcome.answers.items()} == {"vote": every, "no-sampling": every}
    assert all(len(each) == 10 for of in outcome.answers.values() for each in of.values())
    assert outcome.probed["moved"]["moved"].all() and outcome.probed["moved"]["first"].all()


def test_an_attack_begins_at_what_the_others_of_its_batch_found(campaign: Campaign, tmp_path: Path) -> None:
    def further(
        victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws, starts: list[Tensor]
    ) -> Tensor:
        begun.append(len(images))
        return starts[0]

    begun: list[int] = []
    (tmp_path / "pieces").mkdir()
    last = PlannedAttack("vote:further", further, EPSILON, "vote", groups=("small",), starts=("pgd",))  # type: ignore[arg-type]
    longer = replace(campaign, plan=(*campaign.plan, last))
    steps = longer.run(State(tmp_path, keep_images=True))
    next(step for step in steps if step.attack == "pgd")
    steps.close()  # type: ignore[attr-defined]
    list(longer.run(State(tmp_path, keep_images=True)))
    assert begun == [4, 4, 2]
    for start in longer.starts:
        pgd, further_on = (State(tmp_path).load(name, start) for name in ("pgd", "vote:further"))
        assert pgd is not None and further_on is not None and np.array_equal(pgd.images, further_on.images)


def test_memory_and_folder_hold_the_same(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    assert same(finished(campaign, State()), finished(campaign, State(tmp_path)))


def test_a_campaign_that_was_killed_goes_on_where_it_was(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    steps: Iterator[Step] = campaign.run(State(tmp_path))
    for _ in range(4):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    again = list(campaign.run(State(tmp_path)))
    assert [step.loaded for step in again] == [True] * 4 + [False] * 5
    assert same(campaign.outcome(State(tmp_path)), finished(campaign, State()))


def test_processes_share_the_batches(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    for rank in (1, 0):
        assert not any(step.loaded for step in campaign.run(State(tmp_path), rank=rank, count=2))
    assert same(campaign.outcome(State(tmp_path)), finished(campaign, State()))


def test_answers_have_their_own_noise_and_follow_the_seed(campaign: Campaign) -> None:
    plan = (campaign.plan[0], replace(campaign.plan[0], name="again"))
    twice = finished(replace(campaign, plan=plan, probes={}), State())
    clean, again = (twice.answers["vote"][name] for name in ("clean", "again"))
    assert not np.array_equal(clean.scores, again.scores), "each query has noise of its own"
    expected = campaign.classifiers[0].answer(torch.from_numpy(campaign.images.images).permute(0, 3, 1, 2) / 255, 0)
    assert np.array_equal(clean.scores, expected.scores), "as a bundle would answer from counter 0"
    other = finished(replace(campaign, seed=2), State())
    assert not same(other, finished(campaign, State()))


@pytest.mark.parametrize("bounded", [True, False])
def test_an_attack_that_leaves_the_ball_is_refused(campaign: Campaign, bounded: bool) -> None:
    grey = replace(campaign.images, images=np.full_like(campaign.images.images, 100))
    attack = PlannedAttack("brighter", brighter, EPSILON, groups=("small",), bounded=bounded)
    bad = replace(campaign, plan=(campaign.plan[0], attack), images=grey, probes={})
    if bounded:
        with pytest.raises(CheckFailed, match=r"moved a pixel by 25\.5/255"):
            list(bad.run(State()))
    else:
        list(bad.run(State()))


def test_no_weight_keeps_a_gradient_or_wants_none_afterwards(campaign: Campaign) -> None:
    list(campaign.run(State()))
    parameters = list(campaign.networks[0].parameters())
    assert all(each.requires_grad and each.grad is None for each in parameters)

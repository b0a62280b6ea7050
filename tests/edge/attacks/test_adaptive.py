"""The attacks that know the vote and the rejection: known best points, and a judge that no lucky draw impresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flss_edge.attacks.adaptive import (
    ACCEPTED_AND_WRONG,
    HARD,
    HELD_OUT_COUNTERS,
    HeldOut,
    accepted_and_wrong,
    forced_rejection,
    wrong_majority,
)
from flss_edge.attacks.pgd import pgd_attack
from flss_edge.augment import to_float
from flss_edge.checkpoint import load_checkpoint
from flss_edge.classifiers.answers import Answers
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import MeanSoftmax, Vote
from flss_edge.data import load_images
from flss_edge.minibatch import Draws
from flss_runtime.errors import UsageError

from .attack_cases import draws_for, images_with_corners
from .linear_votes import PIXELS, grey_images, many_classes, two_classes

SMALL = Path(__file__).parents[3] / "models" / "cifar10-w8.pt"
QUICK = {"steps": 8, "samples": 8, "held_out": 40}
ATTACKS: dict[str, Callable[..., Tensor]] = {
    "accepted-wrong": partial(accepted_and_wrong, targets=2, **QUICK),  # type: ignore[arg-type]
    "margin": partial(accepted_and_wrong, objective="margin", targets=2, **QUICK),  # type: ignore[arg-type]
    "closed-form": partial(accepted_and_wrong, objective="closed-form", targets=2, **QUICK),  # type: ignore[arg-type]
    "wrong-majority": partial(wrong_majority, **QUICK),
    "rejection": partial(forced_rejection, **QUICK),
}


def towards(images: Tensor, direction: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon * direction.sign().reshape(-1, 3, 4, 4)).clamp(0, 1)


def classifiers_of_two_classes() -> list[SelectiveClassifier]:
    network, _ = two_classes()
    return [
        Vote(network, threshold=60),
        Vote(network, noise="fixed", threshold=60),
        DeterministicVote(network, num_samples=256, threshold=154.0),
        MeanSoftmax(network, threshold=0.6),
        Confidence(network, "no-sampling", threshold=0.6),
    ]


@pytest.mark.parametrize("classifier", classifiers_of_two_classes(), ids=lambda each: each.name)
@pytest.mark.parametrize("attack", ["accepted-wrong", "margin", "wrong-majority"])
def test_reaches_the_best_point_of_a_linear_model(classifier: SelectiveClassifier, attack: str) -> None:
    """With two classes every score of the wrong one is best at the same corner of the ball and the pixel range."""
    _, u = two_classes()
    images, labels = images_with_corners(6), torch.arange(6) % 2
    for epsilon in (8 / 255, 0.2):
        found = ATTACKS[attack](classifier, images, labels, epsilon=epsilon, draws=draws_for(6))
        worst = towards(images, torch.where(labels == 0, -1.0, 1.0)[:, None] * u, epsilon)
        torch.testing.assert_close(found, worst, rtol=0, atol=1e-6)


def test_the_closed_form_reaches_the_same_point() -> None:
    network, u = two_classes()
    images, labels = images_with_corners(6), torch.arange(6) % 2
    found = ATTACKS["closed-form"](Vote(network), images, labels, epsilon=0.1, draws=draws_for(6))
    worst = towards(images, torch.where(labels == 0, -1.0, 1.0)[:, None] * u, 0.1)
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classifier", classifiers_of_two_classes(), ids=lambda each: each.name)
def test_a_forced_rejection_goes_towards_the_border_and_stops_there(classifier: SelectiveClassifier) -> None:
    """Whichever class the answer is, and whether it is right: only its score counts."""
    _, u = two_classes()
    side, labels = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0, 0, 1, 1])
    images = towards(torch.full((4, 3, 4, 4), 0.5, dtype=torch.float64), side[:, None] * u, 0.2)
    assert classifier.answer(images, 0).accepted.all()
    attack = partial(forced_rejection, classifier, images, labels, draws=draws_for(4), samples=400)
    border = towards(images, -side[:, None] * u, 0.05)
    torch.testing.assert_close(attack(epsilon=0.05, steps=8), border, rtol=0, atol=1e-6)
    far = attack(epsilon=0.4)
    assert not classifier.answer(far, 0).accepted.any()
    share = torch.special.ndtr((far.flatten(1) - 0.5) @ u)  # the scale 2 times the deviation 1/2 is 1
    torch.testing.assert_close(share, torch.full_like(share, 0.5), rtol=0, atol=0.1)


@dataclass(frozen=True, eq=False)
class Recording(Vote):
    """A vote that writes down which noise it was asked with."""

    names: list[str] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        self.names.append(name)
        return super().class_scores(images, samples, draws, name, temperature)

    def answer(self, images: Tensor, first: int) -> Answers:
        self.counters.append(first)
        return super().answer(images, first)


def test_each_ascent_keeps_its_own_draws_and_the_judge_has_others() -> None:
    vote = Recording(many_classes(), num_samples=10)
    images, labels = grey_images(4), torch.arange(4)
    rows = slice(3, 7)
    accepted_and_wrong(vote, images, labels, epsilon=0.1, draws=draws_for(9, rows=rows), targets=3, **QUICK)  # type: ignore[arg-type]
    ascents = {name: vote.names.count(name) for name in vote.names if name not in ("held out", "soft ranks")}
    assert len(ascents) == 3 * 2 and set(ascents.values()) == {QUICK["steps"] + 1}  # targets x restarts
    assert vote.names.count("held out") == 1 + 3 * 2  # the image itself and what each ascent found
    assert min(vote.counters) >= HELD_OUT_COUNTERS
    first = vote.counters[0]
    assert vote.counters == [first, first + 9, first + 18, first + 27] * 7  # the whole batch's counters, row 3 first


@dataclass(frozen=True)
class Lottery:
    """Two classes; class 1 gets the logit d (u + r) for a deviation d from grey and a direction r that is drawn.

    Whatever is made for one draw of r is worth little against another one; towards u pays always.
    """

    name: str = "lottery"
    num_classes: int = 2
    threshold: float = 0.6
    num_samples: int = 200
    luck: float = 6.0

    def __call__(self, images: Tensor) -> Tensor:
        return self._logits(images, torch.zeros(len(images), 1, PIXELS, dtype=images.dtype))[0]

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        return self._logits(images, self.luck * draws.normal(name, samples, PIXELS))

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        return (self.sampled_logits(images, samples, draws, name) / temperature).softmax(dim=2).mean(dim=0)

    def answer(self, images: Tensor, first: int) -> Answers:
        draws = Draws(17, first, len(images), slice(None), images.device, images.dtype)
        shares = self.class_scores(images, self.num_samples, draws, "answer", 1e-4).numpy()
        return Answers(shares.argmax(axis=1), shares.max(axis=1), shares.max(axis=1) >= self.threshold)

    def with_threshold(self, threshold: float) -> Lottery:
        return Lottery(threshold=threshold)

    def _logits(self, images: Tensor, direction: Tensor) -> Tensor:
        towards_one = torch.einsum("bp,bsp->sb", images.flatten(1) - 0.5, 1 + direction)
        return torch.stack([-towards_one, towards_one], dim=2)


def test_a_lucky_draw_is_not_chosen() -> None:
    """Ascents on one draw find images that are perfect for that draw; the honest one is given as a start."""
    classifier, images, labels = Lottery(), torch.full((16, 3, 4, 4), 0.5).double(), torch.zeros(16, dtype=torch.int64)
    honest, draws = images + 0.1, draws_for(16)
    found = accepted_and_wrong(classifier, images, labels, epsilon=0.1, draws=draws, samples=1, starts=[honest])
    assert torch.equal(found, honest)

    name = "soft score 1 0"  # the ascent from the honest image: its draws, and the best image for them
    direction = 1 + classifier.luck * draws.normal(name, 1, PIXELS)
    lucky = images + 0.1 * direction.sign().reshape(images.shape)
    on_its_own = [classifier.class_scores(each, 1, draws, name, HARD)[:, 1].sum() for each in (lucky, honest)]
    assert on_its_own[0] == 16 > on_its_own[1]  # judged by its own draw the lucky image would have won
    judge = HeldOut(classifier, labels, draws, 200)
    assert torch.equal(judge.best([lucky], [honest], ACCEPTED_AND_WRONG), honest)
    assert torch.equal(judge.best([honest], [lucky], ACCEPTED_AND_WRONG), honest)


def test_the_judge_knows_the_threshold() -> None:
    """A sure wrong class that only comes second is worth less than a weaker one that wins and is accepted."""
    network = many_classes(3, 3)
    with torch.no_grad():
        network.encoder.weight.zero_()  # type: ignore[operator, union-attr]
        network.encoder.weight[:, :3] = torch.eye(3)  # type: ignore[index]
        network.head[0].weight.copy_(torch.eye(3))  # type: ignore[arg-type, union-attr, operator]
    second, weaker = (torch.full((1, 3, 4, 4), 0.5).double() for _ in range(2))
    second[0, 0, 0, :3] = torch.tensor([1.0, 0.98, 0.0])
    weaker[0, 0, 0, :3] = torch.tensor([0.4, 0.58, 0.5])
    control, labels = Confidence(network, threshold=0.34), torch.tensor([0])
    scores = [control.class_scores(each, 1, draws_for(1), "", 1.0)[0] for each in (second, weaker)]
    assert scores[0][1] > scores[1][1] > 0.34 and scores[0].argmax() == 0 and scores[1].argmax() == 1
    judge = HeldOut(control, labels, draws_for(1), 1)
    assert torch.equal(judge.best([second, weaker], [], ACCEPTED_AND_WRONG), weaker)
    strict = HeldOut(control.with_threshold(0.9), labels, draws_for(1), 1)
    assert torch.equal(strict.best([second, weaker], [], ACCEPTED_AND_WRONG), second)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("epsilon", [0.0, 8 / 255, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stays_inside(name: str, epsilon: float, dtype: torch.dtype) -> None:
    network = many_classes().to(dtype)
    vote = Vote(network, num_samples=10, threshold=5)
    images, labels = images_with_corners(3, dtype), torch.tensor([0, 4, 2])
    before = images.clone()
    outside = images + 3
    found = ATTACKS[name](vote, images, labels, epsilon=epsilon, draws=draws_for(3, dtype), starts=[outside])
    assert found.shape == before.shape and found.dtype == dtype and not found.requires_grad
    assert float((found - before).abs().max()) <= epsilon + 1e-7
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    assert torch.equal(images, before)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_each_image_on_its_own_and_the_same_again(name: str) -> None:
    vote = Vote(many_classes(), num_samples=10, threshold=5)
    images, labels = grey_images(7), torch.arange(7) % 5
    state = torch.random.get_rng_state()
    whole = ATTACKS[name](vote, images, labels, epsilon=0.1, draws=draws_for(7))
    assert torch.equal(torch.random.get_rng_state(), state)
    parts = [
        ATTACKS[name](vote, images[rows], labels[rows], epsilon=0.1, draws=draws_for(7, rows=rows))
        for rows in (slice(0, 1), slice(1, 5), slice(5, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)
    other = ATTACKS[name](vote, images, labels, epsilon=0.1, draws=draws_for(7, seed=1))
    assert not torch.equal(other, whole)


def test_more_targets_find_more_where_the_second_class_is_a_decoy() -> None:
    """All wrong classes count, the likeliest first."""
    network = many_classes(6, 8, seed=3)
    vote, images, labels = Vote(network, threshold=40), grey_images(12), torch.arange(12) % 6
    rates = []
    for targets in (1, 9):
        found = accepted_and_wrong(vote, images, labels, epsilon=0.02, draws=draws_for(12), targets=targets)
        judge = HeldOut(vote, labels, draws_for(12, seed=5), 400)
        rates.append(judge.value(found, ACCEPTED_AND_WRONG))
    assert float((rates[1] - rates[0]).min()) > -0.4  # chance
    assert float((rates[1] - rates[0]).max()) > 0.5


def test_asks_for_what_it_needs() -> None:
    images, labels = grey_images(2), torch.tensor([0, 1])
    for name in ("accepted-wrong", "wrong-majority", "rejection"):
        with pytest.raises(UsageError, match="Linear only gives logits"):
            ATTACKS[name](nn.Linear(2, 2), images, labels, epsilon=0.1, draws=draws_for(2))
    with pytest.raises(UsageError, match="no objective 'scores'"):
        accepted_and_wrong(Vote(many_classes()), images, labels, epsilon=0.1, draws=draws_for(2), objective="scores")


def test_is_at_least_as_strong_as_pgd_on_a_trained_network(cifar10: Path) -> None:
    """Against fresh noise, on the shipped small model; PGD attacks the path without sampling, as the paper does."""
    chosen = load_images(cifar10).take(np.arange(16), "few")
    images = to_float(torch.from_numpy(chosen.images).permute(0, 3, 1, 2))
    labels, draws = torch.from_numpy(chosen.labels), draws_for(16, torch.float32)
    network = load_checkpoint(SMALL).flss()
    for classifier in (Vote(network, threshold=33), Confidence(network, "no-sampling", threshold=0.25)):
        by_pgd = pgd_attack(classifier, images, labels, epsilon=8 / 255, draws=draws, steps=50)
        adaptive = accepted_and_wrong(
            classifier, images, labels, epsilon=8 / 255, draws=draws, targets=2, restarts=1, steps=20
        )
        rates = []
        for each in (by_pgd, adaptive):
            answers = [classifier.answer(each, 1000 + 16 * query) for query in range(10)]
            rates.append(np.mean([each.accepted & (each.labels != chosen.labels) for each in answers]))
        assert rates[1] > rates[0] + 0.04

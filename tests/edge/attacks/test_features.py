"""The feature-level attack: the closed form for linear encoders, its distances and guides, its refusals."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from flss_edge.attacks import Attack, Victim
from flss_edge.attacks.features import DISTANCES, Features, feature_attack, features_of
from flss_edge.classifiers.confidence import Confidence
from flss_edge.model import FLSS, ModelConfig, Network, build_network
from flss_runtime.errors import UsageError

from . import attack_cases
from .attack_cases import PIXELS, SIZE, Case, PassCounter, cases, draws_for, images_with_corners
from .pass_counts import passes_by_hand

DISTANCE_NAMES = ("l2", "l1", "cosine", "kl", "l2-both")


class LinearEncoder(nn.Module):
    """The pixels themselves, each times its own factor, as the mean; their sums as the log-variance, or nothing."""

    def __init__(self, factors: Tensor, spread: float) -> None:
        super().__init__()
        self.factors, self.spread = nn.Parameter(factors), spread

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.flatten(1)
        return pixels * self.factors, self.spread * pixels.cumsum(dim=1) / PIXELS


def linear_network(spread: float = 0.0, dtype: torch.dtype = torch.float64) -> FLSS:
    network = FLSS(ModelConfig(num_classes=4, width=4, latent_dim=PIXELS, image_size=SIZE))
    factors = torch.linspace(-2, 3, PIXELS)  # none is 0
    network.encoder = LinearEncoder(factors, spread)  # type: ignore[assignment]
    return network.to(dtype).eval()


def real_network(kind: str) -> Network:
    torch.manual_seed(0)
    config = ModelConfig(network=kind, width=8, blocks=(1,), num_classes=4, image_size=16)
    return build_network(config).double().eval()


def pool(size: int, count: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64), torch.arange(count) % 4


@pytest.mark.parametrize("distance", ["l2", "l1", "kl", "l2-both"])
def test_equals_the_closed_form_for_a_linear_encoder(distance: str) -> None:
    """Each pixel goes as far towards the guide's as the ball lets it: guides are black or white, images grey."""
    images = 0.4 + 0.2 * images_with_corners(6)
    guides = (images_with_corners(2, seed=1) > 0.5).double()
    found = feature_attack(
        linear_network(),
        images,
        torch.zeros(6, dtype=torch.int64),
        epsilon=0.1,
        draws=draws_for(6),
        guide_images=guides,
        guide_labels=torch.tensor([0, 1]),  # the first is of the images' own class
        distance=distance,
    )
    torch.testing.assert_close(found, guides[1].clamp(images - 0.1, images + 0.1))


@pytest.mark.parametrize("guide", ["random", "nearest"])
@pytest.mark.parametrize("distance", DISTANCE_NAMES)
def test_comes_nearer_in_every_distance(distance: str, guide: str) -> None:
    network, (images, labels) = real_network("flss"), pool(16, 6)
    guides, images, labels = 0.2 * images[:1], images[1:], labels[1:]
    attack = partial(feature_attack, guide_images=guides, guide_labels=torch.tensor([4]), guide=guide)
    between, target = DISTANCES[distance], features_of(network, guides.expand_as(images))
    before = between(features_of(network, images), target)
    for steps in (1, 4):
        found = attack(
            network, images, labels, epsilon=0.1, draws=draws_for(5), distance=distance, steps=steps, step_size=0.02
        )
        after = between(features_of(network, found), target)
        assert bool((after < 0.95 * before).all())
        before = after if steps == 1 else before


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_plain_classifiers_have_their_pooled_features(distance: str) -> None:
    network, (images, labels) = real_network("classifier"), pool(16, 5)
    guides, images, labels = 0.2 * images[:1], images[1:], labels[1:]
    attack = partial(feature_attack, guide_images=guides, guide_labels=torch.tensor([7]), distance=distance)
    for victim in (network, Confidence(network)):
        found = attack(victim, images, labels, epsilon=0.1, draws=draws_for(4), step_size=0.004, steps=20)
        target = features_of(network, guides.expand_as(images))
        reached, before = (DISTANCES[distance](features_of(network, x), target) for x in (found, images))
        assert bool((reached < 0.9 * before).all())


def test_distances_by_hand() -> None:
    a = Features(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, math.log(4)]]))
    b = Features(torch.tensor([[3.0, -1.0]]), torch.tensor([[math.log(2), 0.0]]))
    kl = 0.5 * ((4 + 1) / 2 - 1 + math.log(2) + (9 + 4) / 1 - 1 - math.log(4))
    expected = {
        "l2": 13.0,
        "l1": 5.0,
        "cosine": 1 - (3 - 2) / math.sqrt(5 * 10),
        "kl": kl,
        "l2-both": 13 + math.log(2) ** 2 + math.log(4) ** 2,
    }
    for name, between in DISTANCES.items():
        assert between(a, b).item() == pytest.approx(expected[name], rel=1e-6)
        assert between(a, a).item() == pytest.approx(0, abs=1e-6)


def guides_of(guide: str, guides: Tensor, guide_labels: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Which guides an attack without bounds walks to."""
    found = feature_attack(
        linear_network(),
        images,
        labels,
        epsilon=1.0,
        draws=draws_for(len(images)),
        guide_images=guides,
        guide_labels=guide_labels,
        guide=guide,
        step_size=0.01,
    )
    distance = torch.cdist(found.flatten(1), guides.flatten(1))
    assert float(distance.min(dim=1).values.max()) < 0.01 * math.sqrt(PIXELS)
    return distance.argmin(dim=1)


def test_a_random_guide_is_any_image_of_another_class() -> None:
    guides, guide_labels = pool(SIZE, 8)
    labels = torch.arange(400) % 4
    images = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64).expand(400, -1, -1, -1)
    chosen = guides_of("random", guides, guide_labels, images, labels)
    assert bool((guide_labels[chosen] != labels).all())
    counts = torch.stack([torch.bincount(chosen[labels == label], minlength=8) for label in range(4)])
    other = guide_labels != torch.arange(4)[:, None]
    assert bool((counts[other] >= 5).all())  # 100 images choose among 6


def test_the_nearest_guide_is_near_in_features_and_of_another_class() -> None:
    guides, guide_labels = pool(SIZE, 8)
    images = images_with_corners(20)
    labels = torch.arange(20) % 4
    factors = torch.linspace(-2, 3, PIXELS).double()
    distance = ((images.flatten(1)[:, None] - guides.flatten(1)) * factors).norm(dim=2)
    distance[guide_labels == labels[:, None]] = torch.inf
    chosen = guides_of("nearest", guides, guide_labels, images, labels)
    assert torch.equal(chosen, distance.argmin(dim=1))
    assert len(chosen.unique()) > 2


def bound(network: nn.Module, **changes: object) -> Attack:
    """The attack with a pool, on this network whatever the victim."""
    guides, guide_labels = pool(SIZE)

    def attack(victim: Victim, images: Tensor, labels: Tensor, **rest: object) -> Tensor:
        victim = network.to(images.dtype)
        return feature_attack(
            victim, images, labels, guide_images=guides, guide_labels=guide_labels, steps=7, **changes, **rest
        )

    return attack


@pytest.mark.parametrize("distance", DISTANCE_NAMES)
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(distance: str, case: Case) -> None:
    network = linear_network(0.5, case.images.dtype)
    attack_cases.assert_inside(bound(network, distance=distance), dataclasses.replace(case, victim=network))


@pytest.mark.parametrize("guide", ["random", "nearest"])
def test_attacks_each_image_on_its_own_and_repeats(guide: str) -> None:
    attack = bound(linear_network(0.5), guide=guide)
    attack_cases.assert_each_image_on_its_own(attack)
    attack_cases.assert_repeats(attack, random=guide == "random")


def test_refuses_what_it_cannot_do() -> None:
    images, labels = pool(SIZE, 4)
    call = partial(feature_attack, epsilon=0.1, draws=draws_for(4), guide_images=images, guide_labels=labels)
    flss, plain = linear_network(), real_network("classifier")
    with pytest.raises(UsageError, match="encoder; Sequential has none"):
        call(attack_cases.curved(), images, labels)
    with pytest.raises(UsageError, match="guide is 'best'"):
        call(flss, images, labels, guide="best")
    with pytest.raises(UsageError, match="distance is 'l3'"):
        call(flss, images, labels, distance="l3")
    with pytest.raises(UsageError, match="'kl' needs a log-variance"):
        call(plain, images, labels, distance="kl")
    with pytest.raises(UsageError, match="no guide of another class"):
        call(flss, images, labels, guide_labels=torch.zeros(4, dtype=torch.int64))
    assert all(parameter.requires_grad for parameter in flss.parameters())


@pytest.mark.parametrize("steps", [1, 5])
def test_passes(steps: int) -> None:
    network = linear_network()
    counter = PassCounter(network.encoder)
    guides, guide_labels = pool(SIZE)
    images, labels = images_with_corners(3), torch.arange(3)
    attack = partial(feature_attack, guide_images=guides, guide_labels=guide_labels, steps=steps)
    attack(network, images, labels, epsilon=0.1, draws=draws_for(3))
    assert (counter.forward / 3, counter.backward / 3) == passes_by_hand(feature_attack, steps=steps)

"""The persistent attacker: chance helps him as the binomial says, and only where answers vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.classifiers.answers import Answers
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import MeanSoftmax, Vote
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS, ModelConfig
from flss_edge.robustness.persistence import Queries, accepted_and_wrong_answers, fooled_within
from flss_runtime.errors import UsageError

COUNT = 40
EPSILON = 8 / 255


def draws_for(count: int, rows: slice | None = None) -> Draws:
    return Draws(0, 0, count, rows or slice(0, count), torch.device("cpu"))


@pytest.fixture(scope="module")
def network() -> FLSS:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FLSS(ModelConfig(num_classes=3, width=4, latent_dim=8, blocks=(1,), image_size=8)).eval()
    with torch.no_grad():
        network.head[0].bias.zero_()  # type: ignore[union-attr, operator]
        network.head[0].weight *= 4  # type: ignore[operator]
        network.encoder.mean.weight *= 5
    return network


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def ask(classifier: SelectiveClassifier, candidates: Tensor, labels: Tensor, **settings: object) -> np.ndarray:
    arguments: dict[str, object] = {
        "images": candidates,
        "epsilon": EPSILON,
        "draws": draws_for(len(candidates)),
        "first": 10,
        **settings,
    }
    return fooled_within(classifier, candidates, labels, **arguments)  # type: ignore[arg-type]


MAKERS: dict[str, Callable[[FLSS], SelectiveClassifier]] = {
    "vote": lambda network: Vote(network, num_samples=15, threshold=8, seed=3),
    "fixed": lambda network: Vote(network, num_samples=15, threshold=8, seed=3, noise="fixed"),
    "mean-softmax": lambda network: MeanSoftmax(network, num_samples=15, threshold=0.4, seed=3),
    "deterministic": lambda network: DeterministicVote(network, num_samples=64, threshold=22.0),
    "no-sampling": lambda network: Confidence(network, threshold=0.4),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("jitter", [0.0, 1 / 255])
def test_equals_asking_again_and_again(
    make: Callable[[FLSS], SelectiveClassifier], jitter: float, network: FLSS, images: Tensor
) -> None:
    """Encoding each candidate once changes nothing: same noise counters, same answers."""
    classifier, labels = make(network), torch.arange(COUNT) % 3
    candidates = torch.stack([images, (images + EPSILON).clamp(max=1)])
    queries = Queries(candidates, images, EPSILON, draws_for(COUNT), jitter)
    found = accepted_and_wrong_answers(classifier, queries, labels, count=5, first=100)
    assert found.shape == (5, COUNT) and found.dtype == np.bool_
    for query in range(5):
        answers = classifier.answer(queries.sent(query), 100 + query * COUNT)
        assert np.array_equal(found[query], answers.accepted & (answers.labels != labels.numpy()))
    assert 0 < found.mean() < 1
    with torch.no_grad():
        within = fooled_within(
            classifier,
            candidates,
            labels,
            images=images,
            epsilon=EPSILON,
            draws=draws_for(COUNT),
            first=100,
            queries=(5, 1, 2),
            jitter=jitter,
        )
    assert np.array_equal(within, [found.any(axis=0), found[0], found[:2].any(axis=0)])


def test_an_image_is_encoded_once_however_often_it_is_sent(network: FLSS, images: Tensor) -> None:
    passes = []
    handle = network.encoder.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    try:
        ask(Vote(network, num_samples=5), images, torch.zeros(COUNT, dtype=torch.int64), queries=(30,))
        assert passes == [COUNT]
        ask(Vote(network, num_samples=5), images, torch.zeros(COUNT, dtype=torch.int64), queries=(3,), jitter=0.001)
        assert passes == [COUNT] * 4
    finally:
        handle.remove()
    assert isinstance(network.encoder, torch.nn.Module) and network.encoder.mean.weight.shape[0] == 8  # as it was


def test_fresh_noise_gives_in_as_the_binomial_says(network: FLSS, images: Tensor) -> None:
    """One image in many places of the batch: a query succeeds with the same chance p, m queries with 1 - (1 - p)^m."""
    vote = Vote(network, num_samples=15, threshold=9, seed=1)
    many = images[:1].expand(400, -1, -1, -1).contiguous()
    answers = vote.answer(many, 10**6)
    labels = torch.full((400,), int(np.bincount(answers.labels[answers.accepted]).argmax()))
    p = float((answers.accepted & (answers.labels != labels.numpy())).mean())
    assert 0.005 < p < 0.5
    within = ask(vote, many, labels, queries=(1, 4, 10)).mean(axis=1)
    for share, m in zip(within, (1, 4, 10), strict=True):
        expected = 1 - (1 - p) ** m
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 400) + m * 2 * np.sqrt(p / 400)
    assert within[0] < within[1] < within[2]


@pytest.mark.parametrize("kind", ["fixed", "deterministic", "no-sampling"])
def test_repeating_an_image_is_no_use_against_a_deterministic_classifier(
    kind: str, network: FLSS, images: Tensor
) -> None:
    classifier, labels = MAKERS[kind](network), torch.arange(COUNT) % 3
    resent = ask(classifier, images, labels, queries=(1, 10, 40))
    assert np.array_equal(resent[0], resent[1]) and np.array_equal(resent[0], resent[2])


def test_jitter_rolls_the_dice_again_where_the_noise_hangs_on_the_image(images: Tensor) -> None:
    """A classifier that seeds its noise with a hash of the image: as if it were fresh to whoever changes one pixel."""
    classifier, labels = Hashed(), torch.zeros(COUNT, dtype=torch.int64)
    resent = ask(classifier, images, labels, queries=(1, 40))
    assert np.array_equal(resent[0], resent[1]) and 0 < resent[0].mean() < 0.3
    jittered = ask(classifier, images, labels, queries=(1, 40), jitter=0.2 / 255)
    assert jittered[1].mean() > 0.9


@dataclass(frozen=True)
class Hashed:
    """Wrong in one of ten cases, by a hash of the pixels."""

    name: str = "hashed"
    num_classes: int = 2
    threshold: float = 0.0
    asked: list[int] = field(default_factory=list)

    def answer(self, images: Tensor, first: int) -> Answers:
        self.asked.append(first)
        labels = np.array([hash(image.numpy().tobytes()) % 10 == 0 for image in images], np.int64)
        return Answers(labels, np.ones(len(labels)), np.ones(len(labels), np.bool_))


def test_candidates_take_turns_and_counters_never_repeat(images: Tensor) -> None:
    candidates = torch.stack([images * 0, images * 0 + 0.5, images * 0 + 1])
    queries = Queries(candidates, images, EPSILON, draws_for(COUNT))
    assert [float(queries.sent(query)[0, 0, 0, 0]) for query in range(5)] == [0.0, 0.5, 1.0, 0.0, 0.5]
    classifier = Hashed()
    labels = torch.zeros(COUNT, dtype=torch.int64)
    accepted_and_wrong_answers(classifier, queries, labels, count=4, first=7)  # type: ignore[arg-type]
    assert classifier.asked == [7, 7 + COUNT, 7 + 2 * COUNT, 7 + 3 * COUNT]


def test_jitter_stays_in_the_ball_and_is_independent_of_the_division(images: Tensor) -> None:
    corner = (images + EPSILON).clamp(max=1)
    queries = Queries(corner[None], images, EPSILON, draws_for(COUNT), jitter=1 / 255)
    sent = [queries.sent(query) for query in range(4)]
    for each in sent:
        assert float((each - images).abs().max()) <= EPSILON + 1e-7
        assert 0 <= float(each.min()) and float(each.max()) <= 1
        assert float((each - corner).abs().max()) == pytest.approx(1 / 255, abs=1e-6)
    assert not torch.equal(sent[0], sent[1])
    rows = slice(5, 9)
    part = Queries(corner[None, rows], images[rows], EPSILON, draws_for(COUNT, rows), jitter=1 / 255)
    assert torch.equal(part.sent(2), sent[2][rows])


def test_refuses_what_does_not_fit(network: FLSS, images: Tensor) -> None:
    labels = torch.zeros(COUNT, dtype=torch.int64)
    for wrong in ((), (0, 1)):
        with pytest.raises(UsageError, match="queries are"):
            ask(Vote(network), images, labels, queries=wrong)
    with pytest.raises(UsageError, match="do not fit"):
        ask(Vote(network), images, labels[:3])
    with pytest.raises(UsageError, match="do not fit"):
        ask(Vote(network), images, labels, images=images[:3])

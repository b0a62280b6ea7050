"""Tiny random networks whose samples disagree, and one of every kind of classifier around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.pixel_noise import PixelNoiseVote, Smoothing
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import MeanSoftmax, Vote
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS, Classifier, ModelConfig, Network, build_network

SIZE = 16
FLSS_CONFIG = {"width": 4, "blocks": (1, 1), "latent_dim": 16, "image_size": SIZE, "num_classes": 5}
PLAIN_CONFIG = {"network": "classifier", "width": 4, "blocks": (1, 1), "image_size": SIZE, "num_classes": 5}

MakeFLSS = Callable[..., FLSS]
MakePlain = Callable[..., Classifier]
DrawsOf = Callable[..., Draws]


def coloured_noise(count: int, seed: int) -> Tensor:
    """Images (count, 3, 16, 16) in [0, 1]; without colours they would look all the same to random networks."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    return noise * torch.rand(count, 3, 1, 1, generator=generator)


def _network(settings: dict[str, object], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(ModelConfig(**settings))  # type: ignore[arg-type]
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: images differ, and no norm is the identity
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.momentum = 1.0
        with torch.no_grad():
            examples = coloured_noise(64, seed)
            network.train()(examples)
            last = network.head[-1] if isinstance(network, FLSS) else network.fc
            last.bias.sub_(network.eval()(examples).mean(dim=0))  # no class is everybody's
    return network


@pytest.fixture(scope="session")
def make_flss() -> MakeFLSS:
    def make(seed: int = 0, **settings: object) -> FLSS:
        network = _network({**FLSS_CONFIG, **settings}, seed)
        assert isinstance(network, FLSS)
        with torch.no_grad():  # as after training: the means of images differ by about as much as their samples
            network.encoder.mean.weight.mul_(4)
        return network

    return make


@pytest.fixture(scope="session")
def make_plain() -> MakePlain:
    def make(seed: int = 1, **settings: object) -> Classifier:
        network = _network({**PLAIN_CONFIG, **settings}, seed)
        assert isinstance(network, Classifier)
        return network

    return make


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Six images (6, 3, 16, 16)."""
    return coloured_noise(6, 7)


@pytest.fixture(scope="session")
def draws_of() -> DrawsOf:
    def make(size: int = 6, rows: slice | None = None, step: int = 0, dtype: torch.dtype = torch.float32) -> Draws:
        return Draws(3, step, size, rows or slice(0, size), torch.device("cpu"), dtype)

    return make


@pytest.fixture(scope="session")
def classifiers(make_flss: MakeFLSS, make_plain: MakePlain) -> dict[str, SelectiveClassifier]:
    """One of each kind, by name, with few samples."""
    network, plain = make_flss(), make_plain()
    vote = Vote(network, num_samples=20, threshold=9, seed=5)
    made: list[SelectiveClassifier] = [
        vote,
        Vote(network, "vote-fixed", 20, seed=5, noise="fixed"),
        Vote(network, "vote-released", 20, noise="released"),
        MeanSoftmax(network, num_samples=20, threshold=0.4, seed=5),
        DeterministicVote(network, num_samples=256, threshold=103.0),
        Confidence(network, "no-sampling", threshold=0.3),
        Confidence(make_plain(weight_noise=True), "pni", threshold=0.3, seed=5),
        PixelNoiseVote(plain, num_samples=20, threshold=12, seed=5),
        Smoothing(plain, num_samples=20, seed=5),
        Cascade(Confidence(plain, threshold=0.3), vote),
    ]
    return {classifier.name: classifier for classifier in made}

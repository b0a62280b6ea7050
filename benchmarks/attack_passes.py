"""How many forward and backward passes an image each attack costs: derived by hand, and counted by hooks.

The tests of the attacks count with hooks of their own, and take what they expect from the table here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flss_edge.attacks import adaptive
from flss_edge.attacks.adaptive import accepted_and_wrong, forced_rejection, wrong_majority
from flss_edge.attacks.apgd import apgd_ce, apgd_dlr, apgd_targeted
from flss_edge.attacks.confidence import confidence_ce, confidence_wrong
from flss_edge.attacks.fab import fab, fab_targeted
from flss_edge.attacks.features import feature_attack
from flss_edge.attacks.gama import gama_mt, gama_pgd
from flss_edge.attacks.pgd import fgsm, pgd_attack, pgd_cw, pgd_restarts
from flss_edge.attacks.square import square
from flss_edge.attacks.transfer import transfer
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import Vote
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS, Network, backbone
from flss_runtime.errors import CheckFailed

IMAGES = 3
EPSILON = 8 / 255


@dataclass(frozen=True)
class Passes:
    """Passes of a whole network, in images: one pass of a batch of 8 counts 8."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Work:
    """What an attack costs an image that is classified correctly; FAB and Square leave others alone.

    Attributes:
        attack: the function.
        by_hand: its settings by name, with `classes`, the number K of them -> passes an image.
        small: settings to count with, so that it takes a second.
        selective: it attacks a classifier that rejects; else a network.
        at_most: as published it stops early, and the number is a bound.
    """

    attack: Callable[..., Tensor]
    by_hand: Callable[[SimpleNamespace], tuple[int, int]]
    small: Mapping[str, Any] = field(default_factory=dict)
    selective: bool = False
    at_most: bool = False


def _aims(settings: SimpleNamespace) -> int:
    """Classes that are aimed at, one after the other."""
    return int(min(settings.targets, settings.classes - 1))


def _restarts(s: SimpleNamespace) -> tuple[int, int]:
    """Every restart takes its steps; its end is looked at once more."""
    return s.restarts * (s.steps + 1), s.restarts * s.steps


def _apgd_targeted(s: SimpleNamespace) -> tuple[int, int]:
    """The clean image ranks the classes; each run is an APGD whose end is looked at once more."""
    return 1 + _aims(s) * (s.steps + 2), _aims(s) * (s.steps + 1)


def _fab(s: SimpleNamespace) -> tuple[int, int]:
    """A step: the gradients of all K - 1 boundaries, then the answer. Around them 1 clean, 2 ends and 3 last steps."""
    return 2 * s.steps * s.restarts + 6, (s.classes - 1) * s.steps * s.restarts


def _fab_targeted(s: SimpleNamespace) -> tuple[int, int]:
    """The same with one boundary a run, and one pass that ranks the classes."""
    runs = _aims(s) * s.restarts
    return 2 * s.steps * runs + 7, s.steps * runs


def _ccat(s: SimpleNamespace) -> tuple[int, int]:
    """The image itself is one more start; each evaluates its start and all steps, and its end is looked at again."""
    return (s.restarts + 1) * (s.steps + 2), (s.restarts + 1) * (s.steps + 1)


def _judged(ascents: int, s: SimpleNamespace) -> tuple[int, int]:
    """Ascents by APGD; each end, and the image itself, is judged by scores and by a few answers."""
    return ascents * (s.steps + 1) + (ascents + 1) * (1 + adaptive.QUERIES), ascents * (s.steps + 1)


def _accepted_and_wrong(s: SimpleNamespace) -> tuple[int, int]:
    """One ascent for each start and class, and one pass that ranks the classes."""
    forward, backward = _judged(s.restarts * _aims(s), s)
    return 1 + forward, backward


SOURCE = {"fgsm": (1, 1), "pgd-7": (7, 7), "gama-pgd": (101, 100)}  # of a transfer; the victim is asked nothing
FEW, SEVERAL = {"steps": 3}, {"steps": 3, "restarts": 2}
SOFT = {**SEVERAL, "samples": 2, "held_out": 2}

# One evaluation of an objective is one forward pass, its gradient one backward pass. APGD evaluates its start and every
# step, the last one included; plain PGD does not look at its end.
TABLE: Mapping[str, Work] = {
    "fgsm": Work(fgsm, lambda s: (1, 1)),
    "pgd": Work(pgd_attack, lambda s: (s.steps, s.steps), FEW),
    "pgd-cw": Work(pgd_cw, lambda s: (s.steps, s.steps), FEW),
    "pgd-long": Work(pgd_restarts, _restarts, SEVERAL),
    "apgd-ce": Work(apgd_ce, lambda s: (s.steps + 1, s.steps + 1), FEW),
    "apgd-dlr": Work(apgd_dlr, lambda s: (s.steps + 1, s.steps + 1), FEW),
    "apgd-t": Work(apgd_targeted, _apgd_targeted, {**FEW, "targets": 2}),
    # the start's probabilities are the anchor of the relaxation; a target wants the clean image's ranks too
    "gama-pgd": Work(gama_pgd, lambda s: (s.steps + 1, s.steps), FEW),
    "gama-mt": Work(gama_mt, lambda s: (s.steps + (1 if s.rank is None else 2), s.steps), {**FEW, "rank": 2}),
    "fab": Work(fab, _fab, SEVERAL),
    "fab-t": Work(fab_targeted, _fab_targeted, {**SEVERAL, "targets": 2}),
    # the clean image, then only queries
    "square": Work(square, lambda s: (s.queries + 1, 0), {"queries": 5, "stop": False}, at_most=True),
    "confidence": Work(confidence_wrong, _ccat, SEVERAL),
    "confidence-ce": Work(confidence_ce, _ccat, SEVERAL),
    "features": Work(feature_attack, lambda s: (s.steps + 1, s.steps), FEW),  # one pass of the guides
    "transfer": Work(transfer, lambda s: SOURCE[s.method], {"method": "pgd-7"}),
    "accepted-wrong": Work(accepted_and_wrong, _accepted_and_wrong, {**SOFT, "targets": 2}, selective=True),
    "wrong-majority": Work(wrong_majority, lambda s: _judged(s.restarts, s), SOFT, selective=True),
    "rejection": Work(forced_rejection, lambda s: _judged(s.restarts, s), SOFT, selective=True),
}


class Counter:
    """Counts of the passes since the counter was made; see `counting`."""

    def __init__(self) -> None:
        """Start at zero."""
        self.forward = self.backward = 0

    def see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Note a forward pass, and each backward pass that comes through it."""
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._see_gradient)

    def _see_gradient(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    @property
    def passes(self) -> Passes:
        """Return what was counted up to now."""
        return Passes(self.forward, self.backward)


@contextmanager
def counting(network: Network) -> Iterator[Counter]:
    """Count the passes within the block, whoever makes them, at the one layer that every pass meets once."""
    counter = Counter()
    handle = backbone(network).conv1.register_forward_hook(counter.see)
    try:
        yield counter
    finally:
        handle.remove()


def by_hand(work: Work, settings: Mapping[str, Any], classes: int) -> Passes:
    """Return the passes an image by the table; settings that are not given have the published values."""
    return Passes(*work.by_hand(SimpleNamespace(**{**defaults(work.attack), **settings}, classes=classes)))


def defaults(attack: Callable[..., Tensor]) -> dict[str, Any]:
    """Return an attack's settings and their published values."""
    parameters = inspect.signature(attack).parameters.values()
    return {item.name: item.default for item in parameters if item.default is not inspect.Parameter.empty}


def check_passes(network: Network, device: str) -> list[dict[str, Any]]:
    """Run every attack with small settings, and compare what the hooks count with the table.

    Returns:
        Rows of the attack's name, the settings, what was counted, and by hand the passes with published settings.

    Raises:
        CheckFailed: an attack makes other passes than the table says.
    """
    classes = network.config.num_classes
    rows = []
    for name, work in TABLE.items():
        counted, expected = count(work, network, device), by_hand(work, work.small, classes)
        if counted != expected:
            raise CheckFailed(
                f"{name} makes {counted} an image, by hand it is {expected}",
                "Correct whichever is wrong: the attack, or TABLE in benchmarks/attack_passes.py.",
            )
        published = by_hand(work, {}, classes)
        rows.append(
            {
                "attack": name,
                "small_settings": dict(work.small),
                "counted": vars(counted),
                "by_hand": vars(expected),
                "published_by_hand": {**vars(published), "at_most": work.at_most},
            }
        )
    return rows


def count(work: Work, network: Network, device: str) -> Passes:
    """Return the passes an image that the attack makes with its small settings.

    Raises:
        CheckFailed: the images of a batch do not cost the same.
    """
    config = network.config
    random = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, config.image_size, config.image_size, generator=random).to(device)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)  # none is wrong already, so that each gets the whole attack
    draws = Draws(0, 0, IMAGES, slice(0, IMAGES), torch.device(device))
    settings = dict(work.small)
    if work.attack is feature_attack:
        settings |= {"guide_images": images, "guide_labels": (labels + 1) % config.num_classes}
    if work.attack is transfer:
        settings["source"] = network
    victim = _selective(network) if work.selective else network
    with counting(network) as counter:
        work.attack(victim, images, labels, epsilon=EPSILON, draws=draws, **settings)
    if counter.forward % IMAGES or counter.backward % IMAGES:
        raise CheckFailed(
            f"{counter.passes} of {IMAGES} images", "Count with settings under which no image stops early."
        )
    return Passes(counter.forward // IMAGES, counter.backward // IMAGES)


def _selective(network: Network) -> SelectiveClassifier:
    return Vote(network, num_samples=4, threshold=3) if isinstance(network, FLSS) else Confidence(network)

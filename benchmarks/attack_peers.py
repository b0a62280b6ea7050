"""This project's attacks beside an independent implementation of the same attack, with equal settings."""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flss_edge.attacks.apgd import apgd_ce, apgd_dlr
from flss_edge.attacks.fab import fab
from flss_edge.attacks.pgd import pgd_attack
from flss_edge.attacks.square import square
from flss_edge.checkpoint import Checkpoint
from flss_edge.data import load_images
from flss_edge.minibatch import Draws
from flss_edge.model import Network
from flss_runtime.environment import version_of
from flss_runtime.errors import DataError, UsageError

PEERS = {"adv_lib": "adv-lib", "torchattacks": "torchattacks"}  # module -> distribution
ARMS = ("ours", "peer")
SEED = 0
BATCH = 500  # of the search for images that are answered correctly


@dataclass(frozen=True)
class Comparison:
    """One attack, implemented twice; both arms attack the same images, and the same way at every call.

    Attributes:
        name: as in the suites.
        settings: of both.
        peer: module, version and function of the other implementation.
        arms: "ours" and "peer"; each returns (B, 3, H, W).
    """

    name: str
    settings: Mapping[str, Any]
    peer: str
    arms: Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """What is attacked: a network in eval mode with images (B, 3, H, W) float and labels (B,), and how hard."""

    network: Network
    images: Tensor
    labels: Tensor
    epsilon: float
    steps: int
    queries: int

    def ours(self, attack: Callable[..., Tensor], settings: Mapping[str, Any]) -> Callable[[], Tensor]:
        """Return one of this project's attacks on these images."""
        count = len(self.images)
        draws = Draws(SEED, 0, count, slice(0, count), self.images.device)
        return partial(attack, self.network, self.images, self.labels, epsilon=self.epsilon, draws=draws, **settings)

    def peer(self, attack: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a peer's attack; they all draw from torch's global generator."""

        def seeded() -> Tensor:
            torch.manual_seed(SEED)
            return attack().detach()

        return seeded


def answers_of(network: Network, images: Tensor) -> Tensor:
    """Return the classes (B,) that the network answers."""
    with torch.no_grad():
        return network(images).argmax(dim=1)


def right_images(options: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Tensor, Tensor, str]:
    """Return the first test images that the network answers correctly, or uniform noise with its answers as labels.

    Returns:
        Images (n, 3, H, W) float in [0, 1], labels (n,) int64, and where they come from.

    Raises:
        DataError: the data is of another size, or has more classes.
        UsageError: too few images are answered correctly.
    """
    size, count, network = checkpoint.model.config.image_size, options.images, checkpoint.model
    if options.data is None:
        images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(options.device)
        return (
            images,
            answers_of(network, images),
            f"synthetic: {count} images of uniform noise, labelled by the network",
        )
    data = load_images(options.data, "test")
    if data.images.shape[1:3] != (size, size) or int(data.labels.max()) >= len(checkpoint.class_names):
        raise DataError(
            f"{options.data.name} has images {data.images.shape[1:3]} of {int(data.labels.max()) + 1} classes, "
            f"{options.checkpoint.name} is for {size} x {size} and {len(checkpoint.class_names)}",
            "Give the data that the network was trained for.",
        )
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(data), BATCH):
        rows = slice(start, start + BATCH)
        images = torch.from_numpy(data.images[rows]).to(options.device).permute(0, 3, 1, 2).contiguous() / 255
        labels = torch.from_numpy(data.labels[rows]).to(options.device)
        right = answers_of(network, images) == labels
        found.append((images[right], labels[right]))
        if sum(len(part) for part, _ in found) >= count:
            both = (torch.cat(parts)[:count] for parts in zip(*found, strict=True))
            return *both, f"{data.source}:first {count} that are answered correctly"
    raise UsageError(
        f"{options.checkpoint.name} answers fewer than {count} images of {options.data.name} correctly",
        "Set --images lower.",
    )


def compare_pgd(case: Case) -> Comparison:
    """adv_lib keeps every image's last wrong iterate, which costs it some copies; ours returns the last one."""
    settings = {"steps": case.steps, "step_size": case.epsilon / 4}
    attack = partial(
        _module("adv_lib.attacks").pgd_linf,
        case.network,
        case.images,
        case.labels,
        case.epsilon,
        steps=case.steps,
        absolute_step_size=case.epsilon / 4,
    )
    arms = {"ours": case.ours(pgd_attack, settings), "peer": case.peer(attack)}
    return Comparison("pgd", settings, _named("adv_lib", "pgd_linf"), arms)


def compare_apgd(case: Case, loss: str) -> Comparison:
    """Both evaluate the start and every step of every image; neither stops at a success."""
    attack = partial(
        _module("adv_lib.attacks").apgd,
        case.network,
        case.images,
        case.labels,
        case.epsilon,
        norm=float("inf"),
        n_iter=case.steps,
        loss_function=loss,
    )
    ours = case.ours({"ce": apgd_ce, "dlr": apgd_dlr}[loss], {"steps": case.steps})
    return Comparison(
        f"apgd-{loss}", {"steps": case.steps}, _named("adv_lib", "apgd"), {"ours": ours, "peer": case.peer(attack)}
    )


def compare_fab(case: Case) -> Comparison:
    """Untargeted, one start, the image itself. Ours ends with three steps of bisection, which adv_lib leaves out."""
    attack = partial(
        _module("adv_lib.attacks").fab,
        case.network,
        case.images,
        case.labels,
        norm=float("inf"),
        n_iter=case.steps,
    )
    arms = {"ours": case.ours(fab, {"steps": case.steps}), "peer": case.peer(attack)}
    return Comparison("fab", {"steps": case.steps, "restarts": 1}, _named("adv_lib", "fab"), arms)


def compare_square(case: Case) -> Comparison:
    """Both stop at an image's first wrong answer. The stripes are ours' first query; torchattacks counts from after."""
    peer = _module("torchattacks").Square(
        case.network,
        norm="Linf",
        eps=case.epsilon,
        n_queries=case.queries - 1,
        n_restarts=1,
        p_init=0.8,
        loss="margin",
        resc_schedule=False,
        seed=SEED,
    )
    arms = {
        "ours": case.ours(square, {"queries": case.queries}),
        "peer": case.peer(partial(peer, case.images, case.labels)),
    }
    return Comparison("square", {"queries": case.queries}, _named("torchattacks", "Square"), arms)


COMPARISONS: Mapping[str, Callable[[Case], Comparison]] = {
    "pgd": compare_pgd,
    "apgd-ce": partial(compare_apgd, loss="ce"),
    "apgd-dlr": partial(compare_apgd, loss="dlr"),
    "fab": compare_fab,
    "square": compare_square,
}


def _named(module: str, function: str) -> str:
    return f"{module} {version_of(PEERS[module])} {function}"


def _module(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        with warnings.catch_warnings():  # theirs to hear
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"the independent implementation cannot be imported ({error})",
            f"make peers (it installs {PEERS[package]}), or name only other attacks with --only.",
        ) from error

"""What each recipe claims to improve, measured on test images and compared with standard training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.confidence_attack import confidence_attack, log_wrong_confidence, uniform_norm_start
from flss_edge.data import ImageSet
from flss_edge.evaluation import BATCH, accuracy, pgd_accuracy
from flss_edge.minibatch import Draws
from flss_edge.model import Network
from flss_edge.recipes import RECIPES
from flss_edge.recipes.ccat import CCATConfig
from flss_edge.recipes.config import Recipe
from flss_edge.weight_noise import INITIAL_SCALE, WeightNoise

REFERENCE = "standard"
CHANCE = 0.1  # of CIFAR-10's ten classes
EPSILON, PGD_STEPS, PGD_STEP_SIZE = 8 / 255, 20, 2 / 255
CONFIDENCE_STEPS, CONFIDENCE_STEP_SIZE = 20, 0.01  # two starts: the image itself, and a random distance from it
STANDARD_ERRORS = 2.0  # a claim holds where the difference is larger than this many


@dataclass(frozen=True)
class Claim:
    """One sentence about a recipe, with the numbers that decide it.

    Attributes:
        value: of the recipe.
        reference: what it is compared with.
        standard_error: of the difference, from the test images (or channels) alone: one training a recipe.
        holds: whether the difference has the claimed sign and more than two standard errors; None: not measured yet.
    """

    recipe: str
    claim: str
    value: float
    reference: float | None
    standard_error: float | None
    holds: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def measurement_settings() -> dict[str, Any]:
    """Return how everything is measured."""
    return {
        "accuracy": "mean path",
        "epsilon": EPSILON,
        "pgd_steps": PGD_STEPS,
        "pgd_step_size": PGD_STEP_SIZE,
        "confidence_attack": f"2 starts, {CONFIDENCE_STEPS} steps of {CONFIDENCE_STEP_SIZE}, higher wrong confidence",
        "noise_sigmas": _sigmas(),
        "initial_noise_scale": INITIAL_SCALE,
    }


def measure(recipe: Recipe, network: Network, test: ImageSet, between_batches: Callable[[], None]) -> dict[str, Any]:
    """Return everything that a claim about this recipe, or a comparison with it, needs.

    Args:
        recipe: the network's; the confidence attack, which is dear, is run for ccat and the reference only.
        network: trained; left in eval mode.
        test: images that nothing was trained on or chosen by.
        between_batches: called now and then; what it raises ends the measurement.
    """
    network.eval()
    torch.manual_seed(0)  # for the noise of a network that has some
    attack = {"epsilon": EPSILON, "step_size": PGD_STEP_SIZE, "steps": PGD_STEPS, "between_batches": between_batches}
    measured: dict[str, Any] = {
        "n": len(test),
        "clean_accuracy": accuracy(network, test),
        "pgd_accuracy": pgd_accuracy(network, test, **attack),  # type: ignore[arg-type]
        "noise_accuracy": {f"{sigma:g}": _noise_accuracy(network, test, sigma) for sigma in _sigmas()},
        "logit_difference": _logit_difference(network, test),
    }
    if recipe.config.recipe == REFERENCE or isinstance(recipe.config, CCATConfig):
        measured["confidence"] = _confidences(network, test, between_batches)
    scales = [module.scale.detach().flatten() for module in network.modules() if isinstance(module, WeightNoise)]
    if scales:
        measured["noise_scales"] = _summary(torch.cat(scales))
        measured["noise_scale_changes"] = _summary((torch.cat(scales) - INITIAL_SCALE).abs())
    return measured


def claims_of(name: str, measured: Mapping[str, Any]) -> Iterator[Claim]:
    """Yield the claims about the recipe called `name`.

    Args:
        name: of a recipe in `measured`.
        measured: what `measure` returned, by name of the recipe; comparisons need that of "standard".
    """
    recipe, own, reference = RECIPES[name], measured[name], measured.get(REFERENCE)
    share, error = _share(own["clean_accuracy"], own["n"])
    yield _above(name, "clean accuracy is above chance", share, CHANCE, error)
    if name == REFERENCE:
        return
    sigma = getattr(recipe.config, "sigma", None)
    if sigma is not None:
        key = f"{sigma:g}"
        text = f"accuracy under N(0, {key}^2) noise is above that of standard training"
        yield _compare(name, text, own, reference, lambda row: _share(row["noise_accuracy"][key], row["n"]))
    elif "confidence" in own:
        drop = own["confidence"]["drop"]
        text = "confidence falls from clean to attacked images (mean drop)"
        yield _above(name, text, drop["mean"], 0.0, drop["standard_error"])
        text = "1 - mean confidence on attacked images is above that of standard training"
        yield _compare(name, text, own, reference, _doubt)
    elif recipe.attack is not None:
        text = f"PGD-{PGD_STEPS} accuracy is above that of standard training"
        yield _compare(name, text, own, reference, lambda row: _share(row["pgd_accuracy"], row["n"]))
    if "noise_scales" in own:
        changes = own["noise_scale_changes"]
        text = f"noise scales moved from their initial {INITIAL_SCALE} (mean absolute difference)"
        yield _above(name, text, changes["mean"], 0.0, changes["standard_error"])
        text = "logits of two passes differ, unlike standard training's (root mean square)"
        yield _compare(name, text, own, reference, _difference)


def _doubt(row: Mapping[str, Any]) -> tuple[float, float]:
    attacked = row["confidence"]["attacked"]
    return 1 - attacked["mean"], attacked["standard_error"]


def _difference(row: Mapping[str, Any]) -> tuple[float, float]:
    found = row["logit_difference"]
    return found["root_mean_square"], found["standard_error"]


def _compare(
    name: str,
    text: str,
    own: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    read: Callable[[Mapping[str, Any]], tuple[float, float]],
) -> Claim:
    value, error = read(own)
    if reference is None:
        return Claim(name, text, value, None, None, None)
    other, other_error = read(reference)
    return _above(name, text, value, other, math.hypot(error, other_error))


def _above(name: str, text: str, value: float, reference: float, error: float) -> Claim:
    return Claim(name, text, value, reference, error, value - reference > STANDARD_ERRORS * error)


def _share(share: float, n: int) -> tuple[float, float]:
    """Return a share with its standard error, two hits and two misses added: 0 of n is not known without error."""
    likely = (share * n + 2) / (n + 4)
    return share, math.sqrt(likely * (1 - likely) / (n + 4))


def _sigmas() -> list[float]:
    return sorted({recipe.config.sigma for recipe in RECIPES.values() if hasattr(recipe.config, "sigma")})


def _batches(network: Network, test: ImageSet) -> Iterator[tuple[Tensor, Tensor, Draws]]:
    device = next(network.parameters()).device
    for start in range(0, len(test), BATCH):
        rows = slice(start, min(start + BATCH, len(test)))
        images = torch.from_numpy(test.images[rows]).permute(0, 3, 1, 2).to(device).float() / 255
        yield images, torch.from_numpy(test.labels[rows]).to(device), Draws(0, 0, len(test), rows, device)


@torch.no_grad()
def _noise_accuracy(network: Network, test: ImageSet, sigma: float) -> float:
    """Return the accuracy with one noise an image, which may leave [0, 1] as in the training."""
    correct = 0
    for images, labels, draws in _batches(network, test):
        noisy = images + sigma * draws.normal("noise", *images.shape[1:])
        correct += int((network(noisy).argmax(dim=1) == labels).sum())
    return correct / len(test)


@torch.no_grad()
def _logit_difference(network: Network, test: ImageSet) -> dict[str, float]:
    """Return the root mean square difference of the logits of two passes, and its standard error over the images."""
    squares = torch.cat([(network(x) - network(x)).square().mean(dim=1) for x, _, _ in _batches(network, test)])
    size = math.sqrt(float(squares.mean()))
    spread = float(squares.std()) / math.sqrt(len(squares))
    return {"root_mean_square": size, "standard_error": spread / (2 * size) if size else 0.0}


def _confidences(network: Network, test: ImageSet, between_batches: Callable[[], None]) -> dict[str, Any]:
    """Return the largest class probability on clean images and on those attacked for confidence in a wrong class."""
    clean, attacked = [], []
    for images, labels, draws in _batches(network, test):
        objective = log_wrong_confidence(network, labels)
        found = [
            confidence_attack(
                objective,
                images,
                start,
                epsilon=EPSILON,
                step_size=CONFIDENCE_STEP_SIZE,
                steps=CONFIDENCE_STEPS,
            )
            for start in (images, uniform_norm_start(images, draws, EPSILON))
        ]
        with torch.no_grad():
            second = (objective(found[1]) > objective(found[0]))[:, None, None, None]
            attacked.append(_confidence(network(torch.where(second, found[1], found[0]))))
            clean.append(_confidence(network(images)))
        between_batches()
    before, after = torch.cat(clean), torch.cat(attacked)
    return {"clean": _summary(before), "attacked": _summary(after), "drop": _summary(before - after)}


def _confidence(logits: Tensor) -> Tensor:
    return functional.softmax(logits, dim=1).max(dim=1).values


def _summary(values: Tensor) -> dict[str, float]:
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "standard_error": float(values.std()) / math.sqrt(len(values)),
        "min": float(values.min()),
        "max": float(values.max()),
    }

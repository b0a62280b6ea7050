"""Training configurations: data, not code. The trainer reads a `TrainConfig` top to bottom."""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from flss_runtime.errors import UsageError

OFFICIAL_EPOCHS = 120
MAX_SEED = 2**32  # each epoch's order has a seed of its own, a million times larger, and torch's have 64 bits


@dataclass(frozen=True)
class TrainConfig:
    """The released FLSS recipe (docs/method.md section 2); the defaults are its values.

    The two warm-ups are fractions of the whole training, so that a shorter run scales them: 5 and 9 of 120 epochs.

    Attributes:
        recipe: name of the configuration this one started from.
        epochs: passes over the training images.
        batch_size: images a mini-batch; the last, incomplete one is kept.
        peak_lr: of the triangular schedule, reached at half of all mini-batches.
        momentum_base: SGD momentum at learning rate 0.
        momentum_peak: SGD momentum at the peak learning rate.
        weight_decay: L2 penalty; it acts at each of the two updates of a mini-batch.
        epsilon: attack radius in pixel units of [0, 1].
        attack_steps: PGD steps of the training attack.
        attack_step_size: of the training attack, in pixel units.
        kl_prior_weight: KL1, clean latents against N(0, 1), in both updates.
        kl_between_weight: KL2, adversarial against clean latents, after its warm-up.
        kl_between_warmup_weight: KL2 during its warm-up.
        kl_between_warmup: length of that warm-up as a fraction of the training.
        kl_adversarial_weight: KL3, consistency of sampled and mean logits on adversarial images.
        kl_clean_weight: KL4, the same on clean images.
        awp_gamma: relative size of the weight perturbation; 0 switches it off.
        awp_start: fraction of the training after which it begins.
        crop_padding: pixels of zero padding before the random crop.
        flip: mirror images at random.
        seed: of initialisation, order, augmentation and noise.
        selection_steps: PGD steps on the selection images that choose the checkpoint (step size 2/255).
    """

    recipe: str = "official"
    epochs: int = OFFICIAL_EPOCHS
    batch_size: int = 128
    peak_lr: float = 0.1
    momentum_base: float = 0.9
    momentum_peak: float = 0.8
    weight_decay: float = 5e-4
    epsilon: float = 8 / 255
    attack_steps: int = 10
    attack_step_size: float = 2 / 255
    kl_prior_weight: float = 0.01
    kl_between_weight: float = 1.0
    kl_between_warmup_weight: float = 0.01
    kl_between_warmup: float = 5 / OFFICIAL_EPOCHS
    kl_adversarial_weight: float = 0.1
    kl_clean_weight: float = 1.0
    awp_gamma: float = 0.005
    awp_start: float = 9 / OFFICIAL_EPOCHS
    crop_padding: int = 4
    flip: bool = True
    seed: int = 1
    selection_steps: int = 7

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", f"Give {name} as a whole number of at least 1.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise UsageError(f"{field.name} is {value}", f"Give {field.name} as a finite number of at least 0.")
        if self.epsilon > 1:
            raise UsageError(
                f"epsilon is {self.epsilon:g}, which is outside [0, 1]",
                "Pixels are in [0, 1] here: write 8/255 (0.0314) for 8 of 255 grey levels.",
            )
        if self.seed >= MAX_SEED:
            raise UsageError(f"seed {self.seed} is out of range", f"Give a whole number below {MAX_SEED}.")
        if self.batch_size < 2:
            raise UsageError("batch_size is 1", "Batch normalisation needs at least 2 images a mini-batch.")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    def with_settings(self, settings: list[str]) -> TrainConfig:
        """Return a copy with `key=value` texts applied; fractions such as 8/255 are understood.

        Raises:
            UsageError: unknown key, or a value of another type than the default's.
        """
        hints = typing.get_type_hints(TrainConfig)
        changes: dict[str, Any] = {}
        for text in settings:
            key, separator, value = text.partition("=")
            if not separator or key not in hints or key == "recipe":
                known = ", ".join(name for name in hints if name != "recipe")
                raise UsageError(f"--set {text!r} names no setting", f"Write key=value with one of: {known}.")
            changes[key] = _parse(key, value, hints[key])
        return replace(self, **changes)


RECIPES: types.MappingProxyType[str, TrainConfig] = types.MappingProxyType({"official": TrainConfig()})


def recipe_named(name: str) -> TrainConfig:
    """Return the configuration called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", f"Use one of: {', '.join(RECIPES)}.")
    return RECIPES[name]


def _parse(key: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is float:
            numerator, _, denominator = text.partition("/")
            return float(numerator) / float(denominator or 1)
        return kind(text)
    except (KeyError, ValueError, ZeroDivisionError):
        raise UsageError(f"--set {key}={text} is not a {kind.__name__}", f"Give {key} a {kind.__name__}.") from None

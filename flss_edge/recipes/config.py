"""What every recipe has in common: its settings as data, and how `--set key=value` changes them."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from flss_edge.minibatch import Minibatch
from flss_edge.schedule import exponential, stepwise, triangular
from flss_runtime.errors import UsageError

MAX_SEED = 2**32
EPSILON = 8 / 255  # the radius of the paper's Table 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimiser, schedule, attack and augmentation. Each method adds settings of its own.

    Points in time are fractions of the whole training, so that a shorter run scales them.

    Attributes:
        recipe: name of the recipe that these settings started from.
        epochs: passes over the training images.
        batch_size: images a mini-batch, over all processes; the last, incomplete one is kept.
        seed: of initialisation, order, augmentation and noise.
        schedule: of the learning rate: triangular, step or exponential (flss_edge/schedule.py).
        peak_lr: the highest learning rate.
        lr_milestones: step schedule: where the learning rate is multiplied by `lr_factor`.
        lr_factor: step schedule.
        lr_final: exponential schedule: the factor reached at the end of the training.
        momentum: of SGD; in the triangular schedule, at learning rate 0.
        momentum_peak: in the triangular schedule, at the peak learning rate.
        nesterov: SGD with Nesterov momentum.
        weight_decay: L2 penalty; it acts at each update of a mini-batch.
        epsilon: attack radius in pixel units of [0, 1].
        attack_steps: of the training attack.
        attack_step_size: of the training attack, in pixel units.
        awp_gamma: relative size of the adversarial weight perturbation; 0 switches it off.
        awp_start: when it begins.
        crop_padding: pixels of zero padding before the random crop.
        flip: mirror images at random.
        ema_decay: of an exponential moving average of the weights, which is then evaluated and saved; 0: none.
        selection: what chooses the checkpoint on the selection images: pgd, clean, or last for the last epoch.
        selection_steps: PGD steps of that measurement (step size 2/255, uniform start, as released).
    """

    recipe: str = ""
    epochs: int = 110
    batch_size: int = 128
    seed: int = 1
    schedule: Literal["triangular", "step", "exponential"] = "step"
    peak_lr: float = 0.1
    lr_milestones: tuple[float, ...] = ()
    lr_factor: float = 0.1
    lr_final: float = 1.0
    momentum: float = 0.9
    momentum_peak: float = 0.8
    nesterov: bool = False
    weight_decay: float = 5e-4
    epsilon: float = EPSILON
    attack_steps: int = 10
    attack_step_size: float = 2 / 255
    awp_gamma: float = 0.0
    awp_start: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    ema_decay: float = 0.0
    selection: Literal["pgd", "clean", "last"] = "pgd"
    selection_steps: int = 7

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not 0 <= number < float("inf"):
                    raise UsageError(
                        f"{setting.name} is {number}", f"Give {setting.name} as a finite number of at least 0."
                    )
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}", "Give epochs as a whole number of at least 1.")
        if self.batch_size < 2:
            raise UsageError(f"batch_size is {self.batch_size}", "Batch normalisation needs at least 2 images.")
        if self.epsilon > 1:
            raise UsageError(
                f"epsilon is {self.epsilon:g}, which is outside [0, 1]",
                "Pixels are in [0, 1] here: write 8/255 (0.0314) for 8 of 255 grey levels.",
            )
        if self.ema_decay >= 1 or self.momentum >= 1:
            raise UsageError("ema_decay or momentum is 1 or more", "Give a decay below 1, for example 0.999.")
        if self.nesterov and not self.momentum:
            raise UsageError(
                "nesterov needs a momentum, and momentum is 0", "Give a momentum, or --set nesterov=false."
            )
        if self.seed >= MAX_SEED:
            raise UsageError(f"seed {self.seed} is out of range", f"Give a whole number below {MAX_SEED}.")

    @property
    def second_norms(self) -> bool:
        """Whether the network needs a second set of batch norms while it trains (flss_edge/batch_norm.py)."""
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def learning_rate(self, step: int, steps_per_epoch: int) -> tuple[float, float]:
        """Return (learning rate, momentum) of mini-batch `step`, counted from 0."""
        if self.schedule == "triangular":
            return triangular(step, self.epochs * steps_per_epoch, self.peak_lr, (self.momentum, self.momentum_peak))
        epoch_start = (step // steps_per_epoch) / self.epochs
        if self.schedule == "step":
            return stepwise(epoch_start, self.peak_lr, self.lr_milestones, self.lr_factor), self.momentum
        return exponential(epoch_start, self.peak_lr, self.lr_final), self.momentum

    def with_settings(self, settings: list[str]) -> TrainConfig:
        """Return a copy with `key=value` texts applied; fractions such as 8/255 are understood.

        Raises:
            UsageError: unknown key, or a value of another type than the default's.
        """
        hints = {name: hint for name, hint in typing.get_type_hints(type(self)).items() if name != "recipe"}
        changes: dict[str, Any] = {}
        for text in settings:
            key, separator, value = text.partition("=")
            if not separator or key not in hints:
                raise UsageError(
                    f"--set {text!r} names no setting", f"Write key=value with one of: {', '.join(hints)}."
                )
            changes[key] = _parse(key, value, hints[key])
        return replace(self, **changes)


Attack = Callable[[Any, Minibatch, Any], Minibatch]
Loss = Callable[[Any, Minibatch, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How to train one method: settings, an attack, and one loss for each optimiser update of a mini-batch.

    Attributes:
        config: the settings.
        losses: network (in train mode), mini-batch and settings -> weighted terms, 0-dim, whose sum is minimised. Each
            loss makes one update, in order; the weight perturbation acts on the first.
        attack: network (in eval mode), mini-batch and settings -> the mini-batch with `perturbed` filled in.
        network: fields of ModelConfig that the method needs or was published with.
        source: where the settings come from.
    """

    config: TrainConfig
    losses: tuple[Loss, ...]
    source: str
    attack: Attack | None = None
    network: Mapping[str, Any] = field(default_factory=dict)

    def with_settings(self, settings: list[str]) -> Recipe:
        """Return the recipe with `key=value` texts applied, as `TrainConfig.with_settings`.

        Raises:
            UsageError: also for a setting of the attack where the recipe has none.
        """
        keys = [text.partition("=")[0] for text in settings]
        if self.attack is None and (idle := [key for key in keys if key.startswith("attack_")]):
            raise UsageError(
                f"recipe {self.config.recipe} has no attack, so {idle[0]} would do nothing", "Leave it out."
            )
        return replace(self, config=self.config.with_settings(settings))


def _parse(key: str, text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        if text not in typing.get_args(hint):
            raise UsageError(f"--set {key}={text} is unknown", f"Use one of: {', '.join(typing.get_args(hint))}.")
        return text
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is int:
            return int(text)
        if hint is float:
            return _number(text)
        return tuple(_number(part) for part in text.split(",") if part)
    except (KeyError, ValueError, ZeroDivisionError):
        kind = getattr(hint, "__name__", "list of numbers")
        raise UsageError(f"--set {key}={text} is not a {kind}", f"Give {key} a {kind}.") from None


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)

"""Feature Level Stochastic Smoothing (paper Algorithm 1 and Eq. 1; docs/method.md section 2): official, paper, plus.

The released code runs the encoder anew for every latent sample it needs. All samples of one image batch share their
mean and log-variance, so one encoder pass a distinct batch gives the same losses and gradients; the running statistics
of batch norm, which would have moved once a pass, are made to move as far by its momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.adversary import pgd, uniform_start
from flss_edge.augment import strong_view
from flss_edge.losses import kl_between, kl_of_logits, kl_to_prior, vote_margin_loss
from flss_edge.minibatch import Minibatch
from flss_edge.model import FLSS, sample_latents
from flss_edge.recipes.config import Recipe, TrainConfig
from flss_runtime.errors import UsageError

ADVERSARIAL_PASSES = 3  # of the released code in the first update: the attack's noise, fresh noise, no noise
CLEAN_PASSES = 2  # in the second update: with noise, without noise


@dataclass(frozen=True, kw_only=True)
class FLSSConfig(TrainConfig):
    """The released FLSS recipe; what `plus` adds is switched off.

    Attributes:
        kl_prior_weight: KL1, clean latents against N(0, 1), in both updates.
        kl_between_weight: KL2, adversarial against clean latents, after its warm-up.
        kl_between_warmup_weight: KL2 during its warm-up.
        kl_between_warmup: length of that warm-up.
        kl_adversarial_weight: KL3, consistency of sampled and mean logits on adversarial images.
        kl_clean_weight: KL4, the same on clean images.
        consistency: direction of KL3 and KL4: KL(mean || sampled) as released, KL(sampled || mean) as in the paper.
        consistency_reduction: "mean" divides KL3 and KL4 by batch size and classes, "batchmean" by the batch size.
        consistency_noise: what KL3 samples with: fresh noise as released, or the attack's as in the paper.
        epsilon_start: radius at the beginning of the training, as a fraction of epsilon; 1: no ascent.
        epsilon_ramp: when the radius reaches epsilon, rising linearly. The step size rises with it.
        view_weight: cross-entropy of an attacked, strongly augmented view with batch norms of its own; 0: none.
        rejection_weight: -log((1 + margin) / 2) of the soft vote margin at `rejection_noise_scale` on the adversarial
            images, in loss and attack; 0: none.
        rejection_noise_scale: the noise scale that the robot will vote with.
        rejection_samples: samples an image in that margin.
        rejection_temperature: of the soft vote.
    """

    recipe: str = "official"
    epochs: int = 120
    schedule: Literal["triangular", "step", "exponential"] = "triangular"
    awp_gamma: float = 0.005
    awp_start: float = 9 / 120
    kl_prior_weight: float = 0.01
    kl_between_weight: float = 1.0
    kl_between_warmup_weight: float = 0.01
    kl_between_warmup: float = 5 / 120
    kl_adversarial_weight: float = 0.1
    kl_clean_weight: float = 1.0
    consistency: Literal["mean-to-sampled", "sampled-to-mean"] = "mean-to-sampled"
    consistency_reduction: Literal["mean", "batchmean"] = "mean"
    consistency_noise: Literal["fresh", "attack"] = "fresh"
    epsilon_start: float = 1.0
    epsilon_ramp: float = 0.0
    view_weight: float = 0.0
    rejection_weight: float = 0.0
    rejection_noise_scale: float = 2.0
    rejection_samples: int = 16
    rejection_temperature: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values that have no meaning, or no effect."""
        super().__post_init__()
        if self.rejection_samples < 1 or not self.rejection_temperature:
            raise UsageError(
                f"rejection_samples is {self.rejection_samples}, rejection_temperature {self.rejection_temperature:g}",
                "Give at least 1 sample and a temperature above 0.",
            )
        if self.epsilon_start != 1 and not self.epsilon_ramp:
            raise UsageError(
                "epsilon_start has no effect while epsilon_ramp is 0",
                "Say when the radius reaches epsilon, for example --set epsilon_ramp=0.5.",
            )

    @property
    def second_norms(self) -> bool:
        """Whether the second view needs batch norms of its own."""
        return self.view_weight > 0

    def radius(self, progress: float) -> float:
        """Return the attack radius, as a fraction of epsilon, after that fraction of the training."""
        if progress >= self.epsilon_ramp:
            return 1.0
        return self.epsilon_start + (1 - self.epsilon_start) * progress / self.epsilon_ramp


def attack(model: FLSS, batch: Minibatch, config: FLSSConfig) -> Minibatch:
    """PGD on the sampled logits; one noise vector an image, drawn once and reused by every step and the first loss."""

    def attacked(images: Tensor, name: str) -> Tensor:
        epsilon = config.epsilon * config.radius(batch.progress)
        start = uniform_start(images, batch.draws.uniform(f"{name} start", *images.shape[1:]), epsilon)
        step_size = config.attack_step_size * config.radius(batch.progress)
        objective = _attack_objective(model, batch, config, name)
        return pgd(objective, images, start, epsilon=epsilon, step_size=step_size, steps=config.attack_steps)

    batch = replace(batch, perturbed=attacked(batch.images, "attack"))
    if not config.view_weight:
        return batch
    view = strong_view(batch.images, batch.draws)
    with batch_norm.second(model):
        return replace(batch, perturbed_view=attacked(view, "view"))


def adversarial_loss(model: FLSS, batch: Minibatch, config: FLSSConfig) -> dict[str, Tensor]:
    """Return the terms of the first update (paper Eq. 1), and those that `plus` adds to them."""
    assert batch.perturbed is not None
    # The released AWP proxy divides its latent terms by the nominal batch size even in an incomplete last batch, and
    # samples KL3 with noise of its own.
    divisor = batch.nominal if batch.proxy else len(batch.images)
    fresh = "proxy consistency" if batch.proxy else "adversarial consistency"
    mean_c, logvar_c = model.encoder(batch.images)
    with batch_norm.moved_by(model, batch_norm.after_passes(ADVERSARIAL_PASSES)):
        mean_a, logvar_a = model.encoder(batch.perturbed)
    logits = model.head(sample_latents(mean_a, logvar_a, _noise(model, batch, "attack")))
    sampled = logits
    if config.consistency_noise == "fresh":
        sampled = model.head(sample_latents(mean_a, logvar_a, _noise(model, batch, fresh)))
    warming = batch.progress < config.kl_between_warmup
    between_weight = config.kl_between_warmup_weight if warming else config.kl_between_weight
    terms = {
        "adversarial_cross_entropy": functional.cross_entropy(logits, batch.labels),
        "adversarial_kl_prior": config.kl_prior_weight * kl_to_prior(mean_c, logvar_c, divisor),
        "adversarial_kl_between": between_weight * kl_between(mean_a, logvar_a, mean_c, logvar_c, divisor),
        "adversarial_kl_consistency": config.kl_adversarial_weight * _consistency(sampled, model.head(mean_a), config),
    }
    if config.view_weight:
        assert batch.perturbed_view is not None
        with batch_norm.second(model):
            mean_v, logvar_v = model.encoder(batch.perturbed_view)
        view_logits = model.head(sample_latents(mean_v, logvar_v, _noise(model, batch, "view")))
        terms["view_cross_entropy"] = config.view_weight * functional.cross_entropy(view_logits, batch.labels)
    if config.rejection_weight:
        votes = _vote_noise(model, batch, config)
        terms["rejection"] = _rejection(model, mean_a, logvar_a, votes, batch.labels, config).mean()
    return terms


def clean_loss(model: FLSS, batch: Minibatch, config: FLSSConfig) -> dict[str, Tensor]:
    """Return the terms of the second update: clean images with fresh noise."""
    with batch_norm.moved_by(model, batch_norm.after_passes(CLEAN_PASSES)):
        mean, logvar = model.encoder(batch.images)
    sampled = model.head(sample_latents(mean, logvar, _noise(model, batch, "clean")))
    return {
        "clean_cross_entropy": functional.cross_entropy(sampled, batch.labels),
        # always the nominal batch size here, also in an incomplete last batch, as released
        "clean_kl_prior": config.kl_prior_weight * kl_to_prior(mean, logvar, batch.nominal),
        "clean_kl_consistency": config.kl_clean_weight * _consistency(sampled, model.head(mean), config),
    }


def _attack_objective(model: FLSS, batch: Minibatch, config: FLSSConfig, name: str) -> Callable[[Tensor], Tensor]:
    noise = _noise(model, batch, name)
    votes = _vote_noise(model, batch, config) if config.rejection_weight and name == "attack" else None

    def objective(images: Tensor) -> Tensor:
        mean, logvar = model.encoder(images)
        logits = model.head(sample_latents(mean, logvar, noise))
        value = functional.cross_entropy(logits, batch.labels, reduction="sum")
        if votes is not None:
            value = value + _rejection(model, mean, logvar, votes, batch.labels, config).sum()
        return value

    return objective


def _vote_noise(model: FLSS, batch: Minibatch, config: FLSSConfig) -> Tensor:
    """Return the noise (N, B, D) of the votes in the rejection term, at the robot's noise scale."""
    numbers = batch.draws.normal("rejection", config.rejection_samples, model.config.features)
    return config.rejection_noise_scale * numbers.transpose(0, 1)


def _rejection(model: FLSS, mean: Tensor, logvar: Tensor, votes: Tensor, labels: Tensor, config: FLSSConfig) -> Tensor:
    """Return the weighted rejection term of each image (B,): small where the true class would win by many votes."""
    logits = model.head(sample_latents(mean, logvar, votes))
    return config.rejection_weight * vote_margin_loss(logits, labels, config.rejection_temperature)


def _consistency(sampled: Tensor, mean: Tensor, config: FLSSConfig) -> Tensor:
    p, q = (mean, sampled) if config.consistency == "mean-to-sampled" else (sampled, mean)
    value = kl_of_logits(p, q)
    return value / mean.shape[1] if config.consistency_reduction == "mean" else value


def _noise(model: FLSS, batch: Minibatch, name: str) -> Tensor:
    return batch.draws.normal(name, model.config.features)


OFFICIAL = Recipe(
    FLSSConfig(),
    attack=attack,
    losses=(adversarial_loss, clean_loss),
    source="released FLSS code, which made the published figures",
)

# Unit weights, no warm-ups, KL(sampled || mean), one noise vector for attack and KL3. What the paper leaves open
# (learning rate, momentum) stays as released.
PAPER = replace(
    OFFICIAL,
    config=FLSSConfig(
        recipe="paper",
        kl_prior_weight=1.0,
        kl_between_warmup=0.0,
        kl_adversarial_weight=1.0,
        awp_start=0.0,
        consistency="sampled-to-mean",
        consistency_reduction="batchmean",
        consistency_noise="attack",
    ),
    source="Addepalli et al., CVPRW 2021, Algorithm 1, read literally",
)

# The sizes of the additions were chosen, not tuned.
PLUS = replace(
    OFFICIAL,
    config=FLSSConfig(
        recipe="plus",
        ema_decay=0.999,
        attack_steps=4,
        attack_step_size=4 / 255,
        epsilon_start=0.25,
        epsilon_ramp=0.6,
        view_weight=0.5,
        rejection_weight=0.5,
    ),
    network={"activation": "silu"},
    source="beyond the paper: moving average, ascending radius, second view, rejection-aware loss",
)

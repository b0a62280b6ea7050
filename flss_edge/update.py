"""One mini-batch of FLSS training: attack, perturb the weights, then two updates (paper Eq. 1; docs/method.md, 2).

The released code runs the encoder anew for every latent sample it needs. All samples of one image batch share their
mean and log-variance, so one encoder pass a distinct batch gives the same losses and gradients; the running statistics
of batch norm, which would have moved once a pass, are made to move as far by its momentum: 1 - 0.9^passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from flss_edge.adversary import pgd
from flss_edge.awp import perturbed_weights
from flss_edge.losses import consistency, kl_between, kl_to_prior
from flss_edge.model import FLSS, sample_latents
from flss_edge.recipes import TrainConfig

ADVERSARIAL_PASSES = 3  # of the released code in the first update: the attack's noise, fresh noise, no noise
CLEAN_PASSES = 2  # in the second update: with noise, without noise
BN_MOMENTUM = 0.1


class Update:
    """The two updates of a mini-batch, with everything that stays the same between mini-batches."""

    def __init__(
        self, model: FLSS, optimizer: torch.optim.SGD, config: TrainConfig, generator: torch.Generator
    ) -> None:
        """Bind the network, its optimiser and the source of all noise (on the network's device)."""
        self.model, self.optimizer, self.config, self.generator = model, optimizer, config, generator

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Train on one mini-batch and return its loss terms (0-dim tensors, still on the device).

        Args:
            images: (B, 3, H, W) float in [0, 1], augmented.
            labels: (B,) int64.
            progress: fraction of the whole training that is done, in [0, 1); decides the warm-ups.
        """
        config, model = self.config, self.model
        noise = self._noise(images)  # drawn once, reused by every attack step and by the first update
        perturbed = self._attack(images, labels, noise)
        model.train()

        def first_terms(proxy: bool) -> dict[str, Tensor]:
            return self._adversarial_terms(images, perturbed, labels, noise, progress, proxy=proxy)

        awp = config.awp_gamma > 0 and progress >= config.awp_start
        moved = perturbed_weights(model, lambda: first_terms(proxy=True)["loss"], config.awp_gamma)
        with moved if awp else nullcontext():
            first = first_terms(proxy=False)
            self._descend(first["loss"])
        second = self._clean_terms(images, labels)
        self._descend(second["loss"])
        terms = {f"adversarial_{name}": value.detach() for name, value in first.items()}
        return terms | {f"clean_{name}": value.detach() for name, value in second.items()}

    def _attack(self, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        def logits_of(x: Tensor) -> Tensor:
            mean, logvar = self.model.encoder(x)
            logits: Tensor = self.model.head(sample_latents(mean, logvar, noise))
            return logits

        self.model.eval()
        return pgd(
            logits_of,
            images,
            labels,
            epsilon=self.config.epsilon,
            step_size=self.config.attack_step_size,
            steps=self.config.attack_steps,
            generator=self.generator,
        )

    def _adversarial_terms(
        self,
        images: Tensor,
        perturbed: Tensor,
        labels: Tensor,
        noise: Tensor,
        progress: float,
        *,
        proxy: bool,
    ) -> dict[str, Tensor]:
        """Return the first update's terms; as AWP's `proxy` they leave the running statistics alone."""
        config, model = self.config, self.model
        with bn_momentum(model, 0.0 if proxy else BN_MOMENTUM):
            mean_c, logvar_c = model.encoder(images)
        with bn_momentum(model, 0.0 if proxy else _passes(ADVERSARIAL_PASSES)):
            mean_a, logvar_a = model.encoder(perturbed)
        warming = progress < config.kl_between_warmup
        between_weight = config.kl_between_warmup_weight if warming else config.kl_between_weight
        fresh = sample_latents(mean_a, logvar_a, self._noise(images))
        # The released AWP proxy divides its latent terms by the nominal batch size even in an incomplete last batch.
        divisor = config.batch_size if proxy else len(images)
        terms = {
            "cross_entropy": functional.cross_entropy(model.head(sample_latents(mean_a, logvar_a, noise)), labels),
            "kl_prior": config.kl_prior_weight * kl_to_prior(mean_c, logvar_c, divisor),
            "kl_between": between_weight * kl_between(mean_a, logvar_a, mean_c, logvar_c, divisor),
            "kl_consistency": config.kl_adversarial_weight * consistency(model.head(fresh), model.head(mean_a)),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _clean_terms(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        config, model = self.config, self.model
        with bn_momentum(model, _passes(CLEAN_PASSES)):
            mean, logvar = model.encoder(images)
        sampled = model.head(sample_latents(mean, logvar, self._noise(images)))
        terms = {
            "cross_entropy": functional.cross_entropy(sampled, labels),
            # always the nominal batch size here, also in an incomplete last batch, as released
            "kl_prior": config.kl_prior_weight * kl_to_prior(mean, logvar, config.batch_size),
            "kl_consistency": config.kl_clean_weight * consistency(sampled, model.head(mean)),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _noise(self, images: Tensor) -> Tensor:
        shape = (len(images), self.model.config.features)
        return torch.randn(shape, generator=self.generator, device=images.device, dtype=images.dtype)


@contextmanager
def bn_momentum(model: nn.Module, momentum: float) -> Iterator[None]:
    """Let batch norm's running statistics move by `momentum` (0 freezes them) within the block."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield
    finally:
        for norm in norms:
            norm.momentum = BN_MOMENTUM


def _passes(count: int) -> float:
    return 1 - (1 - BN_MOMENTUM) ** count

"""Gaussians of logits as a linear head makes them, and what is true of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DRAWS = 100_000
Array = npt.NDArray[Any]


def random_gaussians(count: int, classes: int, latent_dim: int = 64, seed: int = 0) -> tuple[Array, Array]:
    """Mean logits (count, K) and covariances (count, K, K), float32; winners with a half of the votes and more."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, latent_dim))
    weight -= weight.mean(axis=0)  # as training leaves a softmax head: its rows sum to zero, the covariance is singular
    std = np.exp(0.5 * rng.standard_normal((count, latent_dim)))
    covariance = np.einsum("kd,bd,ld->bkl", weight, std**2, weight)
    spread = np.sqrt(np.trace(covariance, axis1=1, axis2=2) / classes)[:, None]
    mean_logits = rng.standard_normal((count, classes)) * spread
    mean_logits[np.arange(count), rng.integers(0, classes, count)] += rng.uniform(2, 6, count) * spread[:, 0]
    return mean_logits.astype(np.float32), covariance.astype(np.float32)


def true_shares(mean_logits: Array, covariance: Array, noise_scale: float = 2.0) -> Array:
    """Shares (B, K) of DRAWS random votes, drawn by NumPy from eigenvectors: nothing in common with what is tested."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None]
    noise = np.random.default_rng(1).standard_normal((DRAWS, mean_logits.shape[1]))
    shares = []
    for mean, factor in zip(mean_logits, root, strict=True):
        choices = (mean + noise_scale * noise @ factor.T).argmax(axis=1)
        shares.append(np.bincount(choices, minlength=len(mean)) / DRAWS)
    return np.array(shares)


def vote_shares(choices: Array, classes: int) -> Array:
    """Shares (B, K) of votes (B, N)."""
    return np.stack([(choices == index).mean(axis=1) for index in range(classes)], axis=1)

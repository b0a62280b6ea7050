"""What a bundle's graphs have to give, computed in torch without folding anything."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flss_edge.model import FLSS, Classifier
from flss_runtime.images import to_nchw

ByteArray = npt.NDArray[np.uint8]
Tensors = dict[str, npt.NDArray[Any]]
Net = TypeVar("Net", bound=nn.Module)


def reference_network(model: Net) -> Net:
    """Return a float32 copy on the CPU in eval mode: what every exported graph is measured against."""
    return copy.deepcopy(model).cpu().float().eval()


def reference_outputs(model: FLSS, images: ByteArray, noise: npt.NDArray[np.float32], noise_scale: float) -> Tensors:
    """Compute what a bundle's graphs have to give, in torch and without folding anything.

    Args:
        model: As `reference_network` returns it.
        images: (B, H, W, 3) uint8.
        noise: (B, N, D) float32 standard normals.
        noise_scale: Factor on the standard deviation.

    Returns:
        mean (B, D), std (B, D), logits (B, N, K), choices (B, N) int64, and deterministic (B, K), the mean's logits.
    """
    # a copy: torch warns of the read-only view of the generator's bank
    drawn = torch.from_numpy(np.array(noise))
    with torch.inference_mode():
        mean, logvar = model.encoder(torch.from_numpy(to_nchw(images)))
        std = torch.exp(0.5 * logvar)
        latents = mean[:, None] + noise_scale * std[:, None] * drawn  # (B, N, D)
        logits = model.head(latents).numpy()
        deterministic = model.head(mean).numpy()
    # argmax by NumPy: the lowest index among equals, which torch does not promise
    choices = logits.argmax(axis=2)
    return {
        "mean": mean.numpy(),
        "std": std.numpy(),
        "logits": logits,
        "choices": choices,
        "deterministic": deterministic,
    }


def logit_outputs(model: FLSS, latent: Tensors) -> Tensors:
    """Compute the Gaussian that the logits have without noise scale, from the formula and in float64.

    Args:
        model: With a linear head, as `reference_network` returns it.
        latent: As `reference_outputs` returns it.

    Returns:
        mean_logits (B, K) and covariance (B, K, K) = W diag(std^2) W^T.
    """
    (linear,) = model.head
    weight = linear.get_parameter("weight").detach().double().numpy()  # (K, D)
    covariance = np.einsum("jd,bd,kd->bjk", weight, latent["std"].astype(np.float64) ** 2, weight, optimize=True)
    return {"mean_logits": latent["deterministic"], "covariance": covariance}


def gate_outputs(gate: Classifier, images: ByteArray) -> Tensors:
    """Return what a gate has to give for images (B, H, W, 3) uint8, in torch: gate_logits (B, K)."""
    with torch.inference_mode():
        return {"gate_logits": gate(torch.from_numpy(to_nchw(images))).numpy()}

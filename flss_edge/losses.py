"""The terms of the FLSS training loss, with the reductions of the released code (docs/method.md section 2).

Every latent term sums over the D latent dimensions and divides by `batch_size`; the released code divides some of them
by the nominal 128 even in an incomplete last batch, so the divisor is an argument.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def kl_to_prior(mean: Tensor, logvar: Tensor, batch_size: int) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), summed over (B, D) and divided by `batch_size` (paper Eq. 1, KL1)."""
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum() / batch_size


def kl_between(mean_p: Tensor, logvar_p: Tensor, mean_q: Tensor, logvar_q: Tensor, batch_size: int) -> Tensor:
    """Return KL(P || Q) of diagonal Gaussians, summed over (B, D) and divided by `batch_size` (paper Eq. 1, KL2)."""
    spread = ((mean_q - mean_p).square() + logvar_p.exp()) / logvar_q.exp()
    return -0.5 * (1 + logvar_p - logvar_q - spread).sum() / batch_size


def consistency(sampled_logits: Tensor, mean_logits: Tensor) -> Tensor:
    """Return KL(softmax(mean) || softmax(sampled)) of logits (B, K), averaged over B * K (KL3 and KL4 as released).

    The paper writes the opposite direction; the released code, which made the published figures, has this one. Its
    'mean' reduction divides by B * K, so with more classes the same weight counts for less.
    """
    sampled = functional.log_softmax(sampled_logits, dim=1)
    return functional.kl_div(sampled, functional.softmax(mean_logits, dim=1), reduction="none").mean()

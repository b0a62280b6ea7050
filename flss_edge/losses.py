"""The terms of the FLSS training loss, with the reductions of the released code (docs/method.md section 2).

Every latent term sums over the D latent dimensions and divides by `batch_size`; the released code divides some of them
by the nominal 128 even in an incomplete last batch, so the divisor is an argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def kl_to_prior(mean: Tensor, logvar: Tensor, batch_size: float) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), summed over (B, D) and divided by `batch_size` (paper Eq. 1, KL1)."""
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum() / batch_size


def kl_between(mean_p: Tensor, logvar_p: Tensor, mean_q: Tensor, logvar_q: Tensor, batch_size: float) -> Tensor:
    """Return KL(P || Q) of diagonal Gaussians, summed over (B, D) and divided by `batch_size` (paper Eq. 1, KL2)."""
    spread = (logvar_p - logvar_q).exp() + (mean_q - mean_p).square() * (-logvar_q).exp()
    return -0.5 * (1 + logvar_p - logvar_q - spread).sum() / batch_size


def kl_of_logits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return KL(softmax(p) || softmax(q)) of logits (B, K), averaged over the batch (torch's 'batchmean').

    KL3 and KL4 of the paper, and the robust term of TRADES. The released FLSS code reduces by 'mean', which divides by
    K once more: with more classes the same weight counts for less.
    """
    log_p, log_q = functional.log_softmax(p_logits, dim=1), functional.log_softmax(q_logits, dim=1)
    # With probabilities instead of log_p the gradient is NaN where one of them underflows to 0.
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def vote_margin_loss(sampled_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return -log((1 + m) / 2) for each image (B,), m in [-1, 1] the soft vote share of the true class less the next.

    A sample's vote, all or nothing at the arg-max, is softened to softmax(logits / temperature), so that the share has
    a gradient; at temperature 0 it is the share that the rejection compares with its threshold. The loss is 0 where all
    samples are sure of the true class, log 2 where two classes tie, and grows without bound where all are wrong.

    Args:
        sampled_logits: (N, B, K), N samples an image.
        labels: (B,) int64, the true classes.
        temperature: above 0.
    """
    shares = functional.softmax(sampled_logits / temperature, dim=-1).mean(dim=0)  # (B, K)
    own = shares.gather(1, labels[:, None])
    strongest = shares.scatter(1, labels[:, None], -1.0).argmax(dim=1, keepdim=True)
    # 1 + m, with the 1 as the sum of all shares: adding small numbers keeps the gradient of hopeless images
    twice = own.squeeze(1) + shares.scatter(1, strongest, 0.0).sum(dim=1)
    return math.log(2) - twice.clamp(min=torch.finfo(twice.dtype).tiny).log()

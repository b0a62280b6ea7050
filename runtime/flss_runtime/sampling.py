"""The ways in which a classifier's votes arise."""

from __future__ import annotations

from flss_runtime.errors import UsageError

# N noisy latents go through the head. The method as published.
LATENT = "latent"
# N draws of the K logits from their exact Gaussian, which a linear head has: the same distribution with less noise.
LOGIT = "logit"
# The same Gaussian at a fixed set of N points: an image always gets the same votes.
DETERMINISTIC = "deterministic"

SAMPLINGS = (LATENT, LOGIT, DETERMINISTIC)


def check_sampling(sampling: str) -> None:
    """Refuse a sampling that does not exist.

    Raises:
        UsageError: It is none of `SAMPLINGS`.
    """
    if sampling not in SAMPLINGS:
        raise UsageError(f"there is no sampling {sampling!r}", f"choose one of: {', '.join(SAMPLINGS)}")

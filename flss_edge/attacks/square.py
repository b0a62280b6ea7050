"""Square: random search over squares at the ball's corners, which needs the victim's logits and no gradient.

Source: Andriushchenko, Croce, Flammarion and Hein, ECCV 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flss_edge.adversary import spread
from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import margin, over_draws, per_image
from flss_edge.minibatch import Draws

PAPER_QUERIES = 10_000
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of those: squares after which the area is halved


def square(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    queries: int = 5000,
    p_init: float = 0.8,
    horizon: int = PAPER_QUERIES,
    stop: bool = True,
) -> Tensor:
    """Attack by random search for the largest margin of a wrong class; no gradient is asked for.

    The first query is vertical stripes of +-epsilon. Each further one sets one square to +-epsilon for each channel,
    and is kept where the margin grows. A random victim's margins are averaged over its draws, so a query is accepted
    on their mean. Squares may touch the image's last row and column, which the released code never reaches.

    Args:
        victim: what is asked, `queries` times at most and once for the images themselves. Images that are finished are
            not sent again, but for random victims, whose draws may belong to places in the batch.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers of the stripes and of every image's own squares.
        queries: of each image.
        p_init: share of the image that the first squares cover, in (0, 1].
        horizon: queries over which the area is halved nine times. 10,000 are the paper's steps as they stand, as
            AutoAttack uses them whatever the number of queries; `queries` stretches them over this search.
        stop: end an image's search at its first wrong answer, and leave alone what is wrong already, as published.
            Otherwise the margin is raised to the last query, which is stricter where answers can be rejected.
    """
    everyone = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        logits = victim(images)
        alone = logits.dim() == 2
        wrong = over_draws(margin(logits, labels)) > 0
        searching = ~wrong if stop else torch.ones_like(wrong)
        best, value = images.clone(), torch.full_like(images[:, 0, 0, 0], -torch.inf)
        for query in range(queries):
            if not bool(searching.any()):
                break
            rows = searching.nonzero()[:, 0] if alone else everyone
            candidate = _candidate(query, covered(query - 1, p_init, horizon), images, best, rows, epsilon, draws)
            found = per_image(victim, margin, labels[rows])(candidate)
            better = (found > value[rows]) & searching[rows]
            best[rows] = torch.where(spread(better), candidate, best[rows])
            value[rows] = torch.where(better, found, value[rows])
            if stop:
                searching &= value <= 0
    return best


def covered(number: int, p_init: float, horizon: int) -> float:
    """Return the share of the image that square `number`, from 0, covers: p_init, halved after every milestone."""
    halved = sum(PAPER_QUERIES * number > halving * horizon for halving in HALVINGS)
    return p_init * 0.5**halved


def _candidate(
    query: int, share: float, images: Tensor, best: Tensor, rows: Tensor, epsilon: float, draws: Draws
) -> Tensor:
    """Return what query number `query` asks about the images of these rows: stripes first, then the best plus a square.

    All images of the batch draw every time, so that nobody's numbers depend on who is still searching.
    """
    _, channels, height, width = images.shape
    if query == 0:
        signs = _signs(draws.uniform("stripes", channels, 1, width)[rows])
        return (images[rows] + epsilon * signs.to(images.dtype)).clamp_(0, 1)
    numbers = draws.uniform(f"square {query}", 2 + channels)[rows]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    down = _band(numbers[:, 0], side, height)[:, None, :, None]
    across = _band(numbers[:, 1], side, width)[:, None, None, :]
    signs = _signs(numbers[:, 2:, None, None]).to(images.dtype)
    return torch.where(down & across, (images[rows] + epsilon * signs).clamp_(0, 1), best[rows])


def _band(numbers: Tensor, side: int, size: int) -> Tensor:
    """Return (B, size) bool: `side` neighbours of `size`, at a place that the numbers (B,) in [0, 1) choose."""
    first = (numbers * (size - side + 1)).long()[:, None]
    places = torch.arange(size, device=numbers.device)
    return (places >= first) & (places < first + side)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)

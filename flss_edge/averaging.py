"""Exponential moving average of a network's weights and running statistics."""

from __future__ import annotations

import copy

import torch

from flss_edge.model import Network


class MovingAverage:
    """A copy of the network that follows it: average <- decay * average + (1 - decay) * network, once a mini-batch.

    Early on the decay is smaller, (1 + n) / (10 + n) after n mini-batches, so that the initialisation is forgotten also
    in a short training.
    """

    def __init__(self, network: Network, decay: float) -> None:
        """Begin at the network as it is."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def follow(self, network: Network, count: int) -> None:
        """Move towards the network, which has made `count` mini-batches before this one."""
        decay = min(self.decay, (1 + count) / (10 + count))
        for average, current in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

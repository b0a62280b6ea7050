"""Exponential moving average of a network's weights and running statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

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
        self._averages = _numbers(self.network)

    @torch.no_grad()
    def follow(self, network: Network, count: int) -> None:
        """Move towards the network, which has made `count` mini-batches before this one."""
        decay = min(self.decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(self._averages, _numbers(network), 1 - decay)  # one launch for a hundred tensors


def _numbers(network: Network) -> list[Tensor]:
    """Return all weights and running statistics, in order; batch norm's counters of calls are left out."""
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]

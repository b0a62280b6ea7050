"""Parametric noise injection into weights: PNI-W of He et al., CVPR 2019, section 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

INITIAL_SCALE = 0.25


class WeightNoise(nn.Module):
    """weight -> weight + scale * std(weight) * noise, with a learned scale for each output channel.

    The noise is drawn anew wherever the weight is used, in training and at inference, from torch's global generator:
    whoever wants to repeat a pass seeds that. The standard deviation is that of the whole tensor, and no gradient flows
    through it.
    """

    def __init__(self, weight: Tensor) -> None:
        """Begin with a scale of 0.25 for every output channel."""
        super().__init__()
        self.scale = nn.Parameter(torch.full((len(weight),) + (1,) * (weight.dim() - 1), INITIAL_SCALE))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the noisy weight; the same shape."""
        return weight + self.scale * weight.detach().std() * torch.randn_like(weight)


def add_weight_noise(network: nn.Module) -> None:
    """Give every convolution and linear layer of `network` a `WeightNoise`, in place."""
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(module, "weight", WeightNoise(module.weight))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: everything decays, as in the literature, but the noise's scales."""
    scales = [module.scale for module in network.modules() if isinstance(module, WeightNoise)]
    others = [p for p in network.parameters() if all(p is not scale for scale in scales)]
    groups = [{"params": others, "weight_decay": weight_decay}]
    return [*groups, {"params": scales, "weight_decay": 0.0}] if scales else groups

"""FLSS networks whose encoder is linear in the pixels, so that every share of the votes is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flss_edge.model import FLSS, ModelConfig

SIZE = 4  # pixels a side
PIXELS = 3 * SIZE * SIZE


class LinearEncoder(nn.Module):
    """mean = A (x - 1/2), and a constant log-variance."""

    def __init__(self, weight: Tensor, logvar: Tensor) -> None:
        super().__init__()
        self.weight, self.logvar = nn.Parameter(weight), nn.Parameter(logvar)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = (images.flatten(1) - 0.5) @ self.weight.t()
        return mean, self.logvar.expand_as(mean)


def linear_flss(weight: Tensor, head: Tensor, std: Tensor) -> FLSS:
    """A network with mean A (x - 1/2), A (D, PIXELS), standard deviations (D,) and a head (K, D) without bias."""
    classes, latent = head.shape
    network = FLSS(ModelConfig(num_classes=classes, width=1, latent_dim=latent, blocks=(1,), image_size=SIZE))
    network.encoder = LinearEncoder(weight, 2 * std.log())  # type: ignore[assignment]
    network = network.to(weight.dtype).eval()
    with torch.no_grad():
        network.head[0].weight.copy_(head)  # type: ignore[arg-type]
        network.head[0].bias.zero_()  # type: ignore[union-attr, operator]
    return network


def two_classes(slope: float = 0.12, std: float = 0.5, seed: int = 0) -> tuple[FLSS, Tensor]:
    """Logits (u x, -u x) with one latent, and u (PIXELS,); at scale s class 0 gets the share Phi(u x / (s std))."""
    u = slope * torch.randn(PIXELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    head = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return linear_flss(u[None], head, torch.tensor([std], dtype=torch.float64)), u


def many_classes(classes: int = 5, latent: int = 6, seed: int = 0) -> FLSS:
    """Random weights, samples that disagree."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(latent, PIXELS, generator=generator, dtype=torch.float64) / 4
    head = torch.randn(classes, latent, generator=generator, dtype=torch.float64)
    return linear_flss(weight, head, 0.2 + 0.4 * torch.rand(latent, generator=generator, dtype=torch.float64))


def grey_images(count: int, seed: int = 1) -> Tensor:
    """Images in [0.3, 0.7], so that a small ball meets no border."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)

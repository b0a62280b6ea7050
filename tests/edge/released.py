"""The released FLSS network restated in plain PyTorch, independent of flss_edge: 1x1 convolutions, then pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ReleasedBlock(nn.Module):
    """Post-activation residual block of the released ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ReleasedEncoder(nn.Module):
    """Backbone, then two 1x1 convolutions on the feature map, each average-pooled afterwards."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            first = ReleasedBlock(sizes[stage - 1], sizes[stage], 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, ReleasedBlock(sizes[stage], sizes[stage], 1)))
        self.conv_mu = nn.Conv2d(sizes[4], latent, 1)
        self.conv_logvar = nn.Conv2d(sizes[4], latent, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        mean = functional.avg_pool2d(self.conv_mu(x), x.shape[-1]).flatten(1)
        logvar = functional.avg_pool2d(self.conv_logvar(x), x.shape[-1]).flatten(1)
        return mean, logvar


class ReleasedVAE(nn.Module):
    """The network whose DataParallel state_dict the released checkpoints are."""

    def __init__(self, width: int = 64, latent: int = 512, classes: int = 10) -> None:
        super().__init__()
        self.encode = ReleasedEncoder(width, latent)
        self.fc1_encoder = nn.Linear(latent, classes)

    def forward(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        mean, logvar = self.encode(x)
        logits: Tensor = self.fc1_encoder(mean + torch.exp(0.5 * logvar) * noise)
        return logits


def random_released(width: int = 64, latent: int = 512, classes: int = 10, seed: int = 0) -> ReleasedVAE:
    """Return the network with random weights and random (valid) running statistics, in eval mode."""
    torch.manual_seed(seed)
    network = ReleasedVAE(width, latent, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn_like(module.running_mean)  # type: ignore[arg-type]
            module.running_var = 0.5 + torch.rand_like(module.running_var)  # type: ignore[arg-type]
    return network.eval()

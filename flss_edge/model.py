"""The FLSS network: an encoder that gives a Gaussian per image, and a small head that classifies its samples.

Source: Addepalli et al., CVPRW 2021, section 3 and the released architecture (ResNet-18 with post-activation blocks,
two 1x1 convolutions for mean and log-variance, one linear classifier).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from flss_runtime.errors import UsageError

STEMS = ("cifar", "imagenet")
STAGES = (1, 2, 4, 8)  # channels of the four stages, in units of `width`
BLOCKS_PER_STAGE = 2  # ResNet-18


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the network's shape; stored in every checkpoint.

    Attributes:
        num_classes: K, at least 2.
        width: channels of the first stage; 64 is the paper's ResNet-18.
        latent_dim: D; `None` means 8 * width, the backbone's feature size (512 in the paper).
        hidden: widths of the head's hidden layers (linear + ReLU each); the paper's released head has none.
        stem: "cifar" (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, max-pool).
        image_size: pixels a side of the square input the network is trained on.
    """

    num_classes: int = 10
    width: int = 64
    latent_dim: int | None = None
    hidden: tuple[int, ...] = ()
    stem: str = "cifar"
    image_size: int = 32

    def __post_init__(self) -> None:
        """Refuse shapes that no network has."""
        object.__setattr__(self, "hidden", tuple(self.hidden))
        sizes = {"width": self.width, "image_size": self.image_size, "latent_dim": self.features}
        for name, value in [*sizes.items(), *(("hidden", size) for size in self.hidden)]:
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is {value!r}", f"Give {name} as a whole number of at least 1.")
        if self.num_classes < 2:
            raise UsageError(f"num_classes is {self.num_classes}", "A classifier needs at least 2 classes.")
        if self.stem not in STEMS:
            raise UsageError(f"stem is {self.stem!r}", f"Use one of {', '.join(STEMS)}.")

    @property
    def features(self) -> int:
        """Size D of the latent space."""
        return 8 * self.width if self.latent_dim is None else self.latent_dim

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "hidden": list(self.hidden)}


class Encoder(nn.Module):
    """ResNet-18 backbone with a mean and a log-variance head.

    The released network applies two 1x1 convolutions to the feature map and pools afterwards. Pooling first is the same
    function, because both are linear, and costs 1/16 of the arithmetic; so the two heads are linear layers here.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the backbone with PyTorch's default initialisation, as the released code does."""
        super().__init__()
        width = config.width
        if config.stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.pool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels = [width * stage for stage in STAGES]
        self.layer1 = _stage(width, channels[0], stride=1)
        self.layer2 = _stage(channels[0], channels[1], stride=2)
        self.layer3 = _stage(channels[1], channels[2], stride=2)
        self.layer4 = _stage(channels[2], channels[3], stride=2)
        self.mean = nn.Linear(channels[3], config.features)
        self.logvar = nn.Linear(channels[3], config.features)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, 8 * width) of images (B, 3, H, W) float in [0, 1]."""
        x = self.pool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each (B, D), of images (B, 3, H, W) float in [0, 1]."""
        features = self.features(images)
        return self.mean(features), self.logvar(features)


class FLSS(nn.Module):
    """Encoder and head of Feature Level Stochastic Smoothing."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network that `config` describes."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        sizes = [config.features, *config.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of the mean path (the paper's "no sampling", NS)."""
        mean, _ = self.encoder(images)
        logits: Tensor = self.head(mean)
        return logits


def sample_latents(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Return mean + exp(logvar / 2) * noise (reparameterisation; `noise` is standard normal, broadcast to (..., D))."""
    return mean + torch.exp(0.5 * logvar) * noise


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    blocks = [BasicBlock(inputs, outputs, stride, downsample)]
    blocks += [BasicBlock(outputs, outputs) for _ in range(BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(*blocks)

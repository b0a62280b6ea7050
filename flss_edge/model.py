"""The networks: FLSS (an encoder gives a Gaussian per image, a head classifies its samples) and plain ResNets.

Source: Addepalli et al., CVPRW 2021, section 3 and the released architecture (ResNet-18 with post-activation blocks,
two 1x1 convolutions for mean and log-variance, one linear classifier). The baselines of the paper's Table 1 are the
same backbone with one linear classifier on its pooled features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from flss_edge.weight_noise import add_weight_noise
from flss_runtime.errors import UsageError

RESNET18 = (2, 2, 2, 2)
MOST_STAGES, MOST_BLOCKS = 6, 64  # a damaged file must not keep us building layers
CHOICES = {
    "network": ("flss", "classifier"),
    "stem": ("cifar", "imagenet"),
    "activation": ("relu", "silu"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the network's shape; stored in every checkpoint.

    Attributes:
        num_classes: K, at least 2.
        width: channels of the first stage, doubled at each further one; 64 is the paper's ResNet-18.
        latent_dim: D; `None` means the backbone's feature size (512 in the paper).
        hidden: widths of the head's hidden layers (linear + ReLU each); the paper's released head has none.
        stem: "cifar" (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, max-pool).
        image_size: pixels a side of the square input the network is trained on.
        network: "flss", or "classifier" for the deterministic backbone with a linear layer.
        blocks: residual blocks of each stage; (2, 2, 2, 2) is ResNet-18, (3, 3, 3) ResNet-20.
        activation: of the backbone, "relu" or "silu".
        weight_noise: every convolution and linear layer adds learned noise to its weights (PNI).
    """

    num_classes: int = 10
    width: int = 64
    latent_dim: int | None = None
    hidden: tuple[int, ...] = ()
    stem: str = "cifar"
    image_size: int = 32
    network: str = "flss"
    blocks: tuple[int, ...] = RESNET18
    activation: str = "relu"
    weight_noise: bool = False

    def __post_init__(self) -> None:
        """Refuse shapes that no network has."""
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise UsageError("blocks is empty", "Give the blocks of each stage, for example 2,2,2,2.")
        sizes = {"width": self.width, "image_size": self.image_size, "latent_dim": self.features}
        several = [(name, size) for name in ("hidden", "blocks") for size in getattr(self, name)]
        for name, value in [*sizes.items(), *several]:
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is {value!r}", f"Give {name} as a whole number of at least 1.")
        if self.num_classes < 2:
            raise UsageError(f"num_classes is {self.num_classes}", "A classifier needs at least 2 classes.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}", f"Use one of {', '.join(allowed)}.")
        if len(self.blocks) > MOST_STAGES or max(self.blocks) > MOST_BLOCKS:
            raise UsageError(
                f"blocks is {self.blocks}", f"Give at most {MOST_STAGES} stages of at most {MOST_BLOCKS} blocks."
            )
        if self.network != "flss" and (self.hidden or self.latent_dim is not None):
            raise UsageError("a plain classifier has no latent space", "Leave out latent_dim and hidden.")
        if self.network == "flss" and self.weight_noise:
            raise UsageError("weight_noise is for plain classifiers", "An FLSS network has its noise in the latents.")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage; the last is the size of the pooled features."""
        return tuple(self.width * 2**stage for stage in range(len(self.blocks)))

    @property
    def features(self) -> int:
        """Size D of the latent space, or of a plain classifier's pooled features."""
        return self.channels[-1] if self.latent_dim is None else self.latent_dim

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "hidden": list(self.hidden), "blocks": list(self.blocks)}


class Backbone(nn.Module):
    """ResNet with post-activation blocks, up to its pooled features.

    `autocast` is the type its convolutions compute in, None for the weights' own. It is no part of the network's state:
    everything after the pooled features stays in the images' type.
    """

    autocast: torch.dtype | None = None

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers with PyTorch's default initialisation, as the released code does."""
        super().__init__()
        width, channels = config.width, config.channels
        if config.stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.pool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = _activation(config)
        self.stages = [f"layer{number}" for number in range(1, len(channels) + 1)]
        for name, inputs, outputs, blocks in zip(
            self.stages, (width, *channels), channels, config.blocks, strict=False
        ):
            stage = _stage(inputs, outputs, blocks, stride=1 if name == "layer1" else 2)
            for block in stage:
                block.relu = _activation(config)
            self.add_module(name, stage)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, channels of the last stage) of images (B, 3, H, W) float in [0, 1]."""
        if self.autocast is None:
            return self._features(images)
        with torch.autocast(images.device.type, dtype=self.autocast):
            features = self._features(images)
        return features.to(images.dtype)

    def _features(self, images: Tensor) -> Tensor:
        x: Tensor = self.pool(self.relu(self.bn1(self.conv1(images))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3))


class Encoder(Backbone):
    """Backbone with a mean and a log-variance head.

    The released network applies two 1x1 convolutions to the feature map and pools afterwards. Pooling first is the same
    function, because both are linear, and costs 1/16 of the arithmetic; so the two heads are linear layers here.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the backbone and the two heads."""
        super().__init__(config)
        self.mean = nn.Linear(config.channels[-1], config.features)
        self.logvar = nn.Linear(config.channels[-1], config.features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each (B, D), of images (B, 3, H, W) float in [0, 1]."""
        features = self.features(images)
        return self.mean(features), self.logvar(features)


class Classifier(Backbone):
    """The plain network of the baselines: backbone and one linear layer."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network that `config` describes."""
        super().__init__(config)
        self.config = config
        self.fc = nn.Linear(config.channels[-1], config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, 3, H, W) float in [0, 1]."""
        logits: Tensor = self.fc(self.features(images))
        return logits


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


Network: TypeAlias = FLSS | Classifier


def build_network(config: ModelConfig) -> Network:
    """Return the network that `config` describes, initialised from torch's global random state."""
    network: Network = FLSS(config) if config.network == "flss" else Classifier(config)
    if config.weight_noise:
        add_weight_noise(network)
    return network


def backbone(network: Network) -> Backbone:
    """Return the convolutional part of a network."""
    return network.encoder if isinstance(network, FLSS) else network


def sample_latents(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Return mean + exp(logvar / 2) * noise (reparameterisation; `noise` is standard normal, broadcast to (..., D))."""
    return mean + torch.exp(0.5 * logvar) * noise


def _activation(config: ModelConfig) -> nn.Module:
    return nn.ReLU(inplace=True) if config.activation == "relu" else nn.SiLU()


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))

"""Corruption by chance beside the adversaries: pixel noise, blur, JPEG, brightness and contrast at five severities.

A corruption has the signature of an attack, so that a campaign runs it like one. It looks at the images only: victim,
labels and epsilon are ignored, and it may move a pixel further than any epsilon.

Source of the parameters: CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019). Two things differ on purpose. CIFAR-10-C
stores 8-bit images; here the values stay as they are, except for JPEG. Its blurs are in pixels of a 32 x 32 image; here
they grow with the image's shorter side, so that an image of another size is blurred as much in the eye. A third may
differ: our motion blur was never compared with the original, see there. Bernoulli noise is not in CIFAR-10-C: severity
1 is the +-1/255 of Addepalli et al., CVPRW 2021, for which a confidence-calibrated classifier (CCAT) rejects 78.60 % of
CIFAR-10; severity s, of this project, is +-s/255.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flss_edge.attacks import Attack, PlannedAttack, Victim
from flss_edge.minibatch import Draws
from flss_edge.robustness.results import CORRUPTION
from flss_runtime.errors import UsageError

SEVERITIES = (1, 2, 3, 4, 5)
PIXELS = 32  # a side of the images for which CIFAR-10-C states its blurs
TRUNCATION = 4.0  # standard deviations to which a Gaussian kernel reaches


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption; a severity makes an attack of it.

    Attributes:
        change: images (B, 3, H, W), this batch's random numbers and a parameter -> images; may leave [0, 1].
        parameters: of severity 1 to 5.
    """

    change: Callable[[Tensor, Draws, Any], Tensor]
    parameters: tuple[Any, ...]

    def __call__(self, severity: int) -> Attack:
        """Return the corruption at a severity of 1 to 5, clipped to [0, 1].

        Raises:
            UsageError: there is no such severity.
        """
        if severity not in SEVERITIES:
            raise UsageError(f"there is no severity {severity!r}", "Use a whole number from 1 (weak) to 5 (strong).")
        parameter = self.parameters[severity - 1]

        @torch.no_grad()
        def attack(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
            return self.change(images, draws, parameter).clamp(0, 1)

        return attack


def bernoulli_noise(images: Tensor, draws: Draws, size: float) -> Tensor:
    """Return images whose every value went up or down by `size`, each with probability 1/2."""
    up = draws.uniform("bernoulli noise", *images.shape[1:]) < 0.5
    return torch.where(up, images + size, images - size)


def gaussian_noise(images: Tensor, draws: Draws, deviation: float) -> Tensor:
    """Return images plus normal noise of that standard deviation, independent for each value."""
    return images + deviation * draws.normal("gaussian noise", *images.shape[1:]).to(images.dtype)


def gaussian_blur(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Return images convolved with a Gaussian of `sigma` pixels of a 32 x 32 image; the outermost pixels are repeated.

    The kernel is the density at whole pixels up to four sigma, rounded, and sums to 1.
    """
    sigma *= _scale(images)
    reach = int(TRUNCATION * sigma + 0.5)
    weights = _gaussian(range(-reach, reach + 1), sigma)
    for axis in (2, 3):
        places = torch.arange(images.shape[axis], device=images.device)
        taps = zip(range(-reach, reach + 1), weights, strict=True)
        # A sum of shifted images and not a convolution: no device rounds its inputs, and batches cannot differ.
        images = sum(
            (
                weight * images.index_select(axis, (places + offset).clamp(0, len(places) - 1))
                for offset, weight in taps
            ),
            torch.zeros_like(images),
        )
    return images


def motion_blur(images: Tensor, draws: Draws, radius_and_sigma: tuple[float, float]) -> Tensor:
    """Return images smeared along a line, at an angle uniform in [-45, 45) degrees for each image.

    The mean of 2 radius + 1 copies, the i-th moved by i pixels along the line (each coordinate rounded) and weighted by
    a Gaussian of sigma at i; the outermost pixels are repeated. Radius and sigma are in pixels of a 32 x 32 image.

    ImageMagick's motion blur made CIFAR-10-C. This one was written from a description of it and was never compared with
    it, neither the kernel nor the images.
    """
    radius, sigma = (value * _scale(images) for value in radius_and_sigma)
    angles = torch.deg2rad(90 * draws.uniform("motion blur") - 45)  # (B,)
    height, width = images.shape[2:]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    smeared = torch.zeros_like(images.permute(0, 2, 3, 1))
    for step, weight in enumerate(_gaussian(range(2 * round(radius) + 1), sigma)):
        down, right = (step * angles.sin()).round().long(), (step * angles.cos()).round().long()
        row = (rows + down[:, None]).clamp(0, height - 1)  # (B, H)
        column = (columns + right[:, None]).clamp(0, width - 1)  # (B, W)
        smeared += weight * images[each, :, row[:, :, None], column[:, None, :]]  # (B, H, W, 3)
    return smeared.permute(0, 3, 1, 2).contiguous()


def jpeg(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """Return images after JPEG at that quality, as Pillow writes it (colour at half the resolution).

    JPEG knows 8-bit images only: values are rounded to whole 255ths first. So an adversarial image loses what it has
    below half a 255th here, as it would in a file.
    """
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8).numpy()
    decoded = [_through_jpeg(image, quality) for image in pixels]
    return torch.from_numpy(np.stack(decoded)).to(images).permute(0, 3, 1, 2).contiguous() / 255


def brightness(images: Tensor, draws: Draws, shift: float) -> Tensor:
    """Return images whose HSV value, the largest of the three channels, is higher by `shift`, at most 1.

    Hue and saturation stay, so the channels grow by the same factor; black turns grey.
    """
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + shift).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=torch.finfo(images.dtype).tiny)), brighter)


def contrast(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Return images whose distance from the mean colour of the image is multiplied by `factor`."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "bernoulli-noise": Corruption(bernoulli_noise, (1 / 255, 2 / 255, 3 / 255, 4 / 255, 5 / 255)),
        "gaussian-noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
        "gaussian-blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
        "motion-blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        "jpeg": Corruption(jpeg, (80, 65, 58, 50, 40)),
        "brightness": Corruption(brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
        "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    }
)


def planned_corruptions(
    names: Iterable[str] = tuple(CORRUPTIONS), severities: Iterable[int] = SEVERITIES
) -> list[PlannedAttack]:
    """Return each corruption at each severity, named like "gaussian-noise-3", of the group "corruption".

    Raises:
        UsageError: an unknown name or severity.
    """
    names, severities = list(names), list(severities)
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UsageError(f"there is no corruption {unknown[0]!r}", f"Use some of: {', '.join(CORRUPTIONS)}.")
    return [
        PlannedAttack(
            f"{name}-{severity}", CORRUPTIONS[name](severity), epsilon=0.0, groups=(CORRUPTION,), bounded=False
        )
        for name in names
        for severity in severities
    ]


def _scale(images: Tensor) -> float:
    return min(images.shape[2:]) / PIXELS


def _gaussian(places: range, sigma: float) -> list[float]:
    """Return a Gaussian's weights at whole pixels, of sum 1."""
    weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in places]
    return [weight / sum(weights) for weight in weights]


def _through_jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]], quality: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            return np.array(decoded, dtype=np.uint8)

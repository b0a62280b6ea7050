"""Augmentation of a uint8 batch on the device: zero-padded random crop and horizontal flip."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return float images (B, 3, H, W) in [0, 1], each cropped and mirrored by its own random draw.

    As the released code's RandomCrop(H, padding) + RandomHorizontalFlip + ToTensor of torchvision, for a batch.

    Args:
        images: (B, 3, H, W) uint8.
        padding: pixels of zeros on each side before the crop of the original size.
        flip: mirror each image with probability 1/2.
        generator: on the images' device.
    """
    batch, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    if flip:
        mirrored = torch.rand((batch, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if padding:
        shift = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=device)
        rows, columns = rows + shift[0], columns + shift[1]
        images = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    index = torch.arange(batch, device=device)[:, None, None]
    cropped = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
    return cropped.permute(0, 3, 1, 2).float() / 255


def to_float(images: Tensor) -> Tensor:
    """Return float images in [0, 1] of uint8 ones (torchvision's ToTensor for a batch)."""
    return images.float() / 255

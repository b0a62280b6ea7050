"""Augmentation of a batch on the device: zero-padded random crop, horizontal flip, and a stronger second view."""

from __future__ import annotations

import torch
from torch import Tensor

from flss_edge.minibatch import Draws

JITTER = (0.4, 0.4, 0.4)  # largest relative changes of the second view: brightness, contrast, saturation
CUTOUT = 0.5  # side of its erased square, as a fraction of the image's


def augment(images: Tensor, padding: int, flip: bool, draws: Draws) -> Tensor:
    """Return float images (n, 3, H, W) in [0, 1], each cropped and mirrored by its own random draw.

    As the released code's RandomCrop(H, padding) + RandomHorizontalFlip + ToTensor of torchvision, for a batch.

    Args:
        images: (n, 3, H, W) uint8, on the device of `draws`.
        padding: pixels of zeros on each side before the crop of the original size.
        flip: mirror each image with probability 1/2.
        draws: of the mini-batch.
    """
    batch, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    numbers = draws.uniform("augment", 3)
    if flip:
        columns = torch.where(numbers[:, :1] < 0.5, width - 1 - columns, columns)
    if padding:
        shift = (numbers[:, 1:] * (2 * padding + 1)).long()  # (n, 2), each in 0 … 2 * padding
        rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
        images = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    index = torch.arange(batch, device=device)[:, None, None]
    cropped = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (n, H, W, 3)
    return cropped.permute(0, 3, 1, 2).to(draws.dtype) / 255


def strong_view(images: Tensor, draws: Draws) -> Tensor:
    """Return a second view of float images (n, 3, H, W) in [0, 1]: colours jittered, a square of each erased to grey.

    Plain strong augmentation hurts adversarial training; with batch norms of its own for the second view it helps
    (Addepalli et al., NeurIPS 2022, DAJAT, whose AutoAugment this replaces by operations that run on the device).
    """
    height, width = images.shape[2:]
    factors = 2 * draws.uniform("view colours", 3, 1, 1, 1) - 1  # (n, 3, 1, 1, 1) in [-1, 1)
    brightness, contrast, saturation = (1 + size * factors[:, k] for k, size in enumerate(JITTER))
    view = images * brightness
    view = (view - view.mean(dim=(1, 2, 3), keepdim=True)) * contrast + view.mean(dim=(1, 2, 3), keepdim=True)
    grey = view.mean(dim=1, keepdim=True)
    view = ((view - grey) * saturation + grey).clamp(0, 1)
    centres = draws.uniform("view cutout", 2)
    near_row = _near(centres[:, 0], height)[:, None, :, None]
    near_column = _near(centres[:, 1], width)[:, None, None, :]
    return torch.where(near_row & near_column, torch.full_like(view, 0.5), view)


def _near(centre: Tensor, size: int) -> Tensor:
    """Return (n, size): whether a pixel lies within half the erased square's side of the centre, given in [0, 1)."""
    place = torch.arange(size, device=centre.device)
    return (place - centre[:, None] * size).abs() <= CUTOUT * size / 2


def to_float(images: Tensor) -> Tensor:
    """Return float images in [0, 1] of uint8 ones (torchvision's ToTensor for a batch)."""
    return images.float() / 255

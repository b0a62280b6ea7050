"""The training images on the device, given out as augmented mini-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from flss_edge.augment import augment
from flss_edge.data import ImageSet
from flss_edge.hardware import Hardware
from flss_edge.minibatch import Draws, Minibatch, seed_of
from flss_edge.recipes.config import TrainConfig


class Loader:
    """All training images as uint8 on the device; every epoch has an order of its own, a function of the seed."""

    def __init__(self, images: ImageSet, config: TrainConfig, hardware: Hardware, layout: torch.memory_format) -> None:
        """Copy the images to the device.

        Args:
            images: (n, H, W, 3) uint8 with labels.
            config: batch size, augmentation and seed.
            hardware: the device, and the parts of a mini-batch that belong to this process.
            layout: memory format of the mini-batches.
        """
        self.config, self.hardware, self.layout = config, hardware, layout
        self.device = torch.device(hardware.device)
        self.images = torch.from_numpy(images.images).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.labels = torch.from_numpy(images.labels).to(self.device)
        self.steps_per_epoch = -(-len(images) // config.batch_size)

    def order(self, epoch: int) -> tuple[Tensor, ...]:
        """Return the indices of the images of each mini-batch; the last, incomplete one is kept."""
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, epoch, "order"))
        order = torch.randperm(len(self.labels), generator=generator).to(self.device)
        return torch.split(order, self.config.batch_size)

    def parts(self, index: Tensor, step: int) -> list[Minibatch]:
        """Return this process's parts of the mini-batch of the images at `index`, augmented.

        Args:
            index: the images of the whole mini-batch.
            step: the mini-batch's number in the whole training, from 0.
        """
        size, hardware = len(index), self.hardware
        bounds = [size * part // hardware.parts for part in range(hardware.parts + 1)]
        first = hardware.processes.rank * hardware.accumulate
        own = range(first, first + hardware.accumulate)
        return [self._part(index, slice(bounds[part], bounds[part + 1]), step) for part in own]

    def _part(self, index: Tensor, rows: slice, step: int) -> Minibatch:
        config, size = self.config, len(index)
        draws = Draws(config.seed, step, size, rows, self.device)
        images = augment(self.images[index[rows]], config.crop_padding, config.flip, draws)
        share = (rows.stop - rows.start) / size
        return Minibatch(
            images=images.contiguous(memory_format=self.layout),
            labels=self.labels[index[rows]],
            draws=draws,
            progress=step / (config.epochs * self.steps_per_epoch),
            share=share,
            nominal=share * config.batch_size,
        )

"""The arms of benchmarks/torch_inference.py: frames through torch, from host memory to the decision in host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flss_edge.classifiers.latent_sampling import head_logits
from flss_edge.hardware import Hardware
from flss_edge.model import FLSS
from flss_runtime.arms import Arm
from flss_runtime.image_pool import ImagePool
from flss_runtime.noise import SeededNoise

BASELINE = "deterministic"
NOISE_SCALE = 2.0
TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
CHECKED_IMAGES, FEWEST_BLOCKS = 256, 4
_WARM_UP = 3  # runs before a capture, in which cuDNN and cuBLAS choose their kernels

Compute = Callable[[], Tensor]
"""Reads what lies on the device and returns, there, (B, 1) the class, or (B, 2) the class and its votes, int64."""


@dataclass(frozen=True)
class Cell:
    """What all arms that take turns have in common."""

    batch: int
    precision: str
    samples: Sequence[int]
    device: str

    def __str__(self) -> str:
        return f"batch {self.batch} in {self.precision}"

    @property
    def cuda(self) -> bool:
        """Whether it computes on a GPU, and not on the CPU."""
        return self.device == "cuda"

    @property
    def arms(self) -> dict[str, tuple[str, int | None]]:
        """Name of an arm -> its way, eager or graph, and N, None for the baseline."""
        ways = ("eager", "graph") if self.cuda else ("eager",)
        kinds = {BASELINE: None, **{f"n{count}": count for count in self.samples}}
        return {f"{kind}-{way}": (way, count) for way in ways for kind, count in kinds.items()}


@dataclass(frozen=True)
class Frames:
    """What the frames of a cell begin with, in host memory; for a GPU it is pinned.

    Attributes:
        pool: blocks (bytes,) uint8. A block is one copy to the device: first B int64, where each image's noise begins,
            then the images (B, H, W, 3) uint8.
        bank: flat float32, the runtime's own noise bank, which stays as it is here.
        batch: B.
        side: H = W.
    """

    pool: ImagePool
    bank: Tensor
    batch: int
    side: int

    def parts(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of a block: starts (B,) int64 and images (B, H, W, 3) uint8."""
        shape = (self.batch, self.side, self.side, 3)
        end = 8 * self.batch
        return block[:end].view(torch.int64), block[end : end + np.prod(shape, dtype=int)].view(shape)


def make_frames(images: NDArray[np.uint8], cell: Cell, latent_dim: int) -> Frames:
    """Lay out images and the places of their noise in blocks.

    Places and bank are those of the runtime's `SeededNoise(0)` for the largest N; its refreshing is left out.

    Args:
        images: (M, H, W, 3), taken one after the other, again and again.
        cell: what runs.
        latent_dim: D.
    """
    noise, most = SeededNoise(0), max(cell.samples)
    bank = torch.from_numpy(noise.take_place(most, latent_dim).bank.copy())
    count = max(FEWEST_BLOCKS, -(-CHECKED_IMAGES // cell.batch))
    size = 8 * cell.batch + cell.batch * images[0].size
    memory = torch.zeros((count, -(-size // 16) * 16), dtype=torch.uint8, pin_memory=cell.cuda)  # int64 are aligned
    frames = Frames(ImagePool(tuple(memory.numpy()), "blocks", None), bank, cell.batch, images.shape[1])
    for number, block in enumerate(memory):
        starts, pixels = frames.parts(block)
        starts.copy_(torch.tensor([noise.take_place(most, latent_dim).start for _ in range(cell.batch)]))
        index = np.arange(number * cell.batch, (number + 1) * cell.batch) % len(images)
        pixels.copy_(torch.from_numpy(images[index]))
    return frames


def network_for(network: FLSS, cell: Cell) -> FLSS:
    """Return a copy of the network in the cell's precision, and let torch round as that says."""
    Hardware(cell.device, "tf32" if cell.precision == "tf32" else "fp32").prepare()
    return deepcopy(network).to(cell.device, TYPES[cell.precision]).to(memory_format=layout_of(network, cell))


def layout_of(network: FLSS, cell: Cell) -> torch.memory_format:
    """Return the layout of images and weights: channels last for tensor cores, which float32 does not use."""
    last = cell.cuda and cell.precision != "fp32" and network.config.width % 8 == 0
    return torch.channels_last if last else torch.contiguous_format


def open_arms(network: FLSS, frames: Frames, cell: Cell) -> dict[str, Arm]:
    """Return the arms by name; to be called and run under `torch.inference_mode`.

    Args:
        network: as of `network_for`.
        frames: blocks that their frames take.
        cell: what runs.
    """
    block = torch.zeros(frames.pool.images[0].size, dtype=torch.uint8, device=cell.device)
    bank = frames.bank.to(cell.device, TYPES[cell.precision])
    starts, pixels = frames.parts(block)
    dtype, layout = TYPES[cell.precision], layout_of(network, cell)

    def images() -> Tensor:
        return pixels.permute(0, 3, 1, 2).to(dtype, memory_format=layout).div_(255)

    opened = {}
    for name, (way, samples) in cell.arms.items():
        path = mean_path(network, images) if samples is None else vote(network, images, bank, starts, samples)
        frame = frame_of(Captured(path) if way == "graph" else path, block, cell)
        opened[name] = Arm(name, frame, frame, lambda: None)
    return opened


def mean_path(network: FLSS, images: Callable[[], Tensor]) -> Compute:
    """Return the deterministic network: without the head of the standard deviation, as it is exported."""

    def compute() -> Tensor:
        mean = network.encoder.mean(network.encoder.features(images()))
        return network.head(mean).argmax(dim=1, keepdim=True)

    return compute


def vote(network: FLSS, images: Callable[[], Tensor], bank: Tensor, starts: Tensor, samples: int) -> Compute:
    """Return the sampled path: every image has a window of the bank, and its N samples vote on the device."""
    latent_dim = network.config.features
    windows = bank.unfold(0, samples * latent_dim, 1)  # a view: row s begins at normal s
    classes = torch.arange(network.config.num_classes, device=bank.device)

    def compute() -> Tensor:
        mean, logvar = network.encoder(images())
        std = NOISE_SCALE * torch.exp(0.5 * logvar)
        noise = windows.index_select(0, starts).view(-1, samples, latent_dim)
        choices = head_logits(network.head, mean, std, noise).argmax(dim=2)  # (B, N)
        votes, labels = (choices[:, :, None] == classes).sum(dim=1).max(dim=1)  # the lowest class wins a tie
        return torch.stack((labels, votes), dim=1)

    return compute


class Captured:
    """The same as one launch of a CUDA graph, which reads and writes where the captured run did."""

    def __init__(self, compute: Compute) -> None:
        """Run it a few times, then record it."""
        self._compute = compute  # what it reads has to stay where it is
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._answer = compute()

    def __call__(self) -> Tensor:
        """Launch it."""
        self._graph.replay()
        return self._answer


def frame_of(compute: Compute, block: Tensor, cell: Cell) -> Callable[[Any], NDArray[np.int64]]:
    """Return what is timed: copy a block to the device, compute, copy the answer back, wait for it."""
    answer = torch.empty(tuple(compute().shape), dtype=torch.int64, pin_memory=cell.cuda)
    shown = answer.numpy()
    wait = torch.cuda.synchronize if cell.cuda else lambda: None

    def frame(host: NDArray[np.uint8]) -> NDArray[np.int64]:
        block.copy_(torch.from_numpy(host), non_blocking=True)
        answer.copy_(compute(), non_blocking=True)
        wait()
        return shown

    return frame

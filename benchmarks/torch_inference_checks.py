"""What benchmarks/torch_inference.py knows of its arms beside their times: decisions, kernels, and bytes at least."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch_inference_arms import NOISE_SCALE, Cell, Frames, make_frames, network_for, open_arms

from flss_edge.augment import to_float
from flss_edge.checkpoint import load_checkpoint
from flss_edge.classifiers.vote import choices_of
from flss_edge.model import FLSS, sample_latents
from flss_runtime.arms import Arm
from flss_runtime.decision import tally
from flss_runtime.errors import CheckFailed

_PROFILED_FRAMES = 5
_NAME = 100  # characters of a kernel's name, of which templates fill a page
_COPIES, _COPIED_BYTES = 5, {"cuda": 2**29, "cpu": 2**26}


@dataclass(frozen=True)
class Agreement:
    """How far an arm may be from the model's own path.

    Attributes:
        votes: share of an image's votes that may be otherwise: near ties between two classes.
        images: share of the images at which even more may be otherwise.
    """

    votes: float
    images: float


AGREEMENT = {"fp32": Agreement(0.01, 0.0), "tf32": Agreement(0.05, 0.02), "fp16": Agreement(0.05, 0.02)}


@torch.inference_mode()
def choices_of_model(network: FLSS, frames: Frames, cell: Cell) -> dict[int | None, NDArray[np.int64]]:
    """Return what each sample of the model's own path votes for, in float32: the latents of the paper, then the head.

    Args:
        network: in float32, as of `network_for`.
        frames: all their blocks are answered.
        cell: what runs.

    Returns:
        N -> (M, N), and for None the class (M, 1) of the mean path; M images, block by block.
    """
    found: dict[int | None, list[NDArray[np.int64]]] = {count: [] for count in (None, *cell.samples)}
    bank, latent_dim = frames.bank.to(cell.device), network.config.features
    for block in frames.pool.images:
        starts, pixels = frames.parts(torch.from_numpy(block))
        images = to_float(pixels.to(cell.device).permute(0, 3, 1, 2))
        mean, logvar = (part[:, None] for part in network.encoder(images))  # (B, 1, D)
        found[None].append(choices_of(network(images)[:, None]))
        for count in cell.samples:
            windows = [bank[start : start + count * latent_dim] for start in starts.tolist()]
            noise = NOISE_SCALE * torch.stack(windows).view(-1, count, latent_dim)
            found[count].append(choices_of(network.head(sample_latents(mean, logvar, noise))))
    return {count: np.concatenate(parts) for count, parts in found.items()}


def check_arm(arm: Arm, frames: Frames, choices: NDArray[np.int64], cell: Cell) -> dict[str, Any]:
    """Require an arm to decide as the model does.

    Args:
        arm: of the cell.
        frames: all their blocks are answered.
        choices: (M, N) of the model, as of `choices_of_model`.
        cell: what runs.

    Returns:
        JSON values: "images" M, "class_flips" (images with another class, near ties included), "vote_flips" (over all
        images, how far the votes returned are from those that the model gives the same class), "disagreements" (images
        beyond the agreement) and the "agreement".

    Raises:
        CheckFailed: there are more disagreements than the precision excuses.
    """
    answers = np.concatenate([np.array(arm.frame(block)) for block in frames.pool.images])  # the arm reuses its array
    images, samples = choices.shape
    labels, votes = answers[:, 0], answers[:, 1] if answers.shape[1] == 2 else np.ones(images, np.int64)
    winners, most = tally(choices)
    by_model = (choices == labels[:, None]).sum(axis=1)
    limits, moved = AGREEMENT[cell.precision], np.abs(by_model - votes)
    wrong = int((np.maximum(moved, most - by_model) > limits.votes * samples).sum())
    if wrong > limits.images * images:
        raise CheckFailed(
            f"{arm.name}, {cell}, decides otherwise than the model on {wrong} of {images} images; "
            f"{int(limits.images * images)} are excused",
            "See what this device computes, or leave the precision out.",
        )
    return {
        "images": images,
        "class_flips": int((labels != winners).sum()),
        "vote_flips": int(moved.sum()),
        "disagreements": wrong,
        "agreement": asdict(limits),
    }


def least_bytes(network: FLSS, frames: Frames, samples: int | None) -> dict[str, int]:
    """Return what a frame has to move at least: every weight once, its images, its part of the bank, its answer.

    Images whose windows overlap share that part; the block with the smallest part counts.

    Args:
        network: in the precision of the arm.
        frames: that it answers.
        samples: N, None for the deterministic network, which has no head of the standard deviation.
    """
    tensors = network.state_dict().items()
    used = [value for name, value in tensors if samples is not None or not name.startswith("encoder.logvar.")]
    item = network.encoder.conv1.weight.element_size()
    found = {
        "weights": sum(value.numel() * item for value in used if value.is_floating_point()),
        "images": 3 * frames.batch * frames.side**2,
        "noise": 0,
        "answer": 8 * frames.batch,
    }
    if samples is not None:
        window, read = samples * network.config.features, []
        for block in frames.pool.images:
            seen = np.zeros(len(frames.bank), np.bool_)
            for start in frames.parts(torch.from_numpy(block))[0].tolist():
                seen[start : start + window] = True
            read.append(int(seen.sum()))
        found |= {"noise": item * min(read), "answer": 16 * frames.batch}
    return found


def copy_bandwidth(device: str) -> float:
    """Return how many bytes a second the device reads and writes when it copies its own memory."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    source = torch.zeros(_COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target, taken = torch.zeros_like(source), []
    for _ in range(2 + 7):  # the first two are slower
        wait()
        began = time.perf_counter()
        for _ in range(_COPIES):
            target.copy_(source)
        wait()
        taken.append(time.perf_counter() - began)
    return 2 * _COPIES * source.numel() / statistics.median(taken[2:])


def count_kernels(
    checkpoint: str, images: NDArray[np.uint8], cells: Sequence[Cell]
) -> dict[tuple[int, str], dict[str, dict[str, Any] | None]]:
    """Return, for (batch, precision) and arm, what a frame does on the GPU, as `_profiled`; for a process of its own.

    The profiler slows down what the process does afterwards, so nothing is timed where it was.

    Args:
        checkpoint: path of it.
        images: (M, H, W, 3).
        cells: to count in.
    """
    model = load_checkpoint(Path(checkpoint)).flss()
    found = {}
    for cell in cells:
        frames, network = make_frames(images, cell, model.config.features), network_for(model, cell)
        with torch.inference_mode():
            arms = open_arms(network, frames, cell)
            found[cell.batch, cell.precision] = {name: _profiled(arm, frames) for name, arm in arms.items()}
    return found


def _profiled(arm: Arm, frames: Frames) -> dict[str, Any] | None:
    """Return what a frame does on the GPU, None where the profiler sees nothing of it.

    Returns:
        JSON values: "kernels" and "copies" (fills too), how many; "kernels_us", the time in each kernel by its name.
    """
    block = frames.pool.images[0]
    arm.frame(block)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(_PROFILED_FRAMES):
            arm.frame(block)
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    if not kernels:
        return None
    taken: dict[str, float] = {}
    for event in kernels:
        name = event.name[:_NAME]
        taken[name] = taken.get(name, 0.0) + event.time_range.elapsed_us() / _PROFILED_FRAMES
    return {
        "kernels": len(kernels) / _PROFILED_FRAMES,
        "copies": (len(events) - len(kernels)) / _PROFILED_FRAMES,
        "kernels_us": dict(sorted(taken.items(), key=lambda item: -item[1])),
    }

"""Loops a careful user writes by hand around bare ONNX Runtime: what our classifier has to be measured against.

They share no code with flss_runtime: sessions, bound buffers, noise and vote are their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime.bundle import Bundle

Frame = Callable[[Any], Any]
BANK = 2**20
PIXEL_NOISE = 0.25  # of randomized smoothing, in units of [0, 1]


def session(graph: Path, threads: int) -> Any:
    """Open a graph as the documentation of ONNX Runtime advises for one stream on few cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class Bound:
    """A session whose inputs and outputs lie in arrays that stay."""

    def __init__(self, graph: Path, threads: int, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._session = session(graph, threads)
        self._binding = self._session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._kept = inputs, outputs  # the binding holds addresses only

    def run(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)


def plain_loop(bundle: Bundle, threads: int) -> Frame:
    """Return image -> class of the deterministic network."""
    pixels, choice, logits = _pixels(bundle), np.zeros(1, np.int64), np.zeros((1, bundle.num_classes), np.float32)
    graph = bundle.graph("deterministic")
    network = Bound(graph, threads, {"images": pixels}, {"choice": choice, "logits": logits})

    def frame(image: Any) -> int:
        np.copyto(pixels[0], image.transpose(2, 0, 1))
        np.divide(pixels, np.float32(255), out=pixels)
        network.run()
        return int(choice[0])

    return frame


def voting_loop(bundle: Bundle, roles: Sequence[str], threads: int, samples: int) -> Frame:
    """Return image -> class or None, on the graphs that our classifier takes: two of them, or the fused one."""
    latent, classes = bundle.latent_dim, bundle.num_classes
    pixels, noise = _pixels(bundle), np.zeros((1, samples, latent), np.float32)
    drawn = {"noise": noise, "noise_scale": np.full(1, bundle.noise_scale, np.float32)}
    choices = np.zeros((1, samples), np.int64)
    votes = {"logits": np.zeros((1, samples, classes), np.float32), "choices": choices}
    if list(roles) == ["fused"]:
        votes["mean_logits"] = np.zeros((1, classes), np.float32)
        graphs = [Bound(bundle.graph("fused"), threads, {"images": pixels, **drawn}, votes)]
    else:
        gaussian = {"mean": np.zeros((1, latent), np.float32), "std": np.zeros((1, latent), np.float32)}
        graphs = [
            Bound(bundle.graph("encoder"), threads, {"images": pixels}, gaussian),
            Bound(bundle.graph("head"), 1, {**gaussian, **drawn}, votes),
        ]
    draw = np.random.default_rng(0)
    bank = draw.standard_normal(BANK, np.float32)
    starts = (draw.integers((BANK - noise.size) // 16, size=4096) * 16).tolist()
    count, least = 0, 0

    def frame(image: Any) -> int | None:
        nonlocal count
        np.copyto(pixels[0], image.transpose(2, 0, 1))
        np.divide(pixels, np.float32(255), out=pixels)
        start = starts[count % 4096]
        count += 1
        np.copyto(noise, bank[start : start + noise.size].reshape(noise.shape))
        for graph in graphs:
            graph.run()
        tally = np.bincount(choices[0], minlength=classes)
        top = int(tally.argmax())
        return top if tally[top] >= least else None

    return frame


def smoothing_loop(bundle: Bundle, threads: int, samples: int) -> Frame:
    """Return image -> class by randomized smoothing: one batch of noisy copies through the deterministic network."""
    network = session(bundle.graph("deterministic"), threads)
    pixels = np.zeros((samples, *_pixels(bundle).shape[1:]), np.float32)
    draw = np.random.default_rng(0)
    bank = (PIXEL_NOISE * draw.standard_normal(pixels.size + BANK, np.float32)).astype(np.float32)
    starts = draw.integers(BANK, size=4096).tolist()
    count = 0

    def frame(image: Any) -> int:
        nonlocal count
        start = starts[count % 4096]
        count += 1
        pixels[:] = image.transpose(2, 0, 1)
        np.divide(pixels, np.float32(255), out=pixels)
        np.add(pixels, bank[start : start + pixels.size].reshape(pixels.shape), out=pixels)
        choices = network.run(["choice"], {"images": pixels})[0]
        return int(np.bincount(choices, minlength=bundle.num_classes).argmax())

    return frame


def _pixels(bundle: Bundle) -> Any:
    return np.zeros((1, 3, bundle.input.height, bundle.input.width), np.float32)

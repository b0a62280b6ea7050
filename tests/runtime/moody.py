"""A real encoder whose first pixel says what happens: how long it works, and whether it fails; and streams on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from flss_runtime.bundle import Bundle, load_bundle, store_calibration
from flss_runtime.noise import SeededNoise
from flss_runtime.stream import StreamClassifier, StreamResult, open_stream

from .bundles import entry, random_images, write_tiny
from .conftest import FLOAT, INT64, TinyModel, save, tensor

BOOL = 9
_TRIPS = 300  # of the loop, for one level of red above the grey that a stream warms up with
_GREY = 128

Image = npt.NDArray[np.uint8]


def save_moody_encoder(path: Path, model: TinyModel) -> None:
    """The tiny encoder; red of the first pixel is work to be done, and with its green at 255 an index is out of bounds.

    Work is a chain of matrix products, each of which needs the one before. The index is refused while the graph runs.
    """
    step = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "mixer"], ["mixed"]),
            helper.make_node("Tanh", ["mixed"], ["next"]),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "step",
        [tensor("trip", [], INT64), tensor("going", [], BOOL), tensor("state", [64, 64])],
        [tensor("on", [], BOOL), tensor("next", [64, 64])],
    )
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mean_weight"], ["plain"]),
        helper.make_node("MatMul", ["flat", "half_logvar_weight"], ["half_logvar"]),
        helper.make_node("Exp", ["half_logvar"], ["std"]),
        helper.make_node("Gather", ["images", "first"], ["image"], axis=0),  # of a batch the first one
        helper.make_node("Gather", ["image", "first"], ["rows"], axis=1),
        helper.make_node("Gather", ["rows", "first"], ["pixel"], axis=1),
        helper.make_node("Mul", ["pixel", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["values"]),  # red, green, blue: 0 to 255
        helper.make_node("Gather", ["values", "first"], ["red"], axis=0),
        helper.make_node("Sub", ["red", "grey"], ["above"]),
        helper.make_node("Relu", ["above"], ["work"]),
        helper.make_node("Mul", ["work", "trips"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["count"], to=INT64),
        helper.make_node("Loop", ["count", "true", "start"], ["end"], body=step),
        helper.make_node("ReduceSum", ["end"], ["total"], keepdims=0),
        helper.make_node("Gather", ["values", "second"], ["green"], axis=0),
        helper.make_node("Div", ["green", "levels"], ["share"]),
        helper.make_node("Mul", ["total", "nothing"], ["zero"]),
        helper.make_node("Add", ["share", "zero"], ["late_share"]),  # so that it fails after the work, not before
        helper.make_node("Floor", ["late_share"], ["full"]),
        helper.make_node("Cast", ["full"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["entry"], axis=0),  # has one entry: 1 is out of bounds
        helper.make_node("Add", ["plain", "entry"], ["mean"]),
    ]
    weights: dict[str, Any] = {
        "mean_weight": model.mean_weight,
        "half_logvar_weight": model.std_weight / np.float32(2),
        "first": np.int64(0),
        "second": np.int64(1),
        "levels": np.float32(255),
        "grey": np.float32(_GREY),
        "trips": np.float32(_TRIPS),
        "true": np.bool_(True),
        "start": np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32),
        "mixer": np.random.default_rng(1).normal(0, 0.2, (64, 64)).astype(np.float32),
        "table": np.zeros(1, np.float32),
        "nothing": np.float32(0),
    }
    weights = {name: np.asarray(value) for name, value in weights.items()}
    inputs = [tensor("images", ["B", 3, model.spec.height, model.spec.width])]
    outputs = [tensor(name, ["B", model.latent_dim], FLOAT) for name in ("mean", "std")]
    save(path, "moody", nodes, inputs, outputs, weights)


def write_moody(target: Path, model: TinyModel) -> Bundle:
    """Write a bundle with that encoder, calibrated for 40, 20 and 5 samples."""
    encoder = target.with_name("moody.onnx")
    save_moody_encoder(encoder, model)
    bundle = write_tiny(target, model, files={"encoder.onnx": encoder})
    for num_samples, min_votes in ((40, 17), (20, 9), (5, 3)):
        store_calibration(bundle, entry(num_samples=num_samples, min_votes=min_votes))
    return load_bundle(target)


def moody_image(model: TinyModel, work: int = 0, *, fails: bool = False, seed: int = 3) -> Image:
    """Make a random image that takes so much work, 0 to 127, and that the encoder may fail on."""
    image: Image = random_images(model, 1, seed)[0]
    image[0, 0] = _GREY + work, 255 if fails else 0, 0
    return image


class Results:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self.all: list[StreamResult] = []

    def __call__(self, result: StreamResult) -> None:
        with self._came:
            self.all.append(result)
            self._came.notify_all()

    def wait(self, count: int, timeout_s: float = 30.0) -> list[StreamResult]:
        """Wait for so many results and return them in the order in which they came."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.all) >= count, timeout_s), f"{len(self.all)} of {count} results"
            return list(self.all)

    def statuses(self) -> dict[int, str]:
        """Return frame -> status, having made sure that no frame has two results."""
        frames = [result.frame for result in self.all]
        assert len(set(frames)) == len(frames), "a frame has two results"
        return {result.frame: result.decision.status.value for result in self.all}


def opened(bundle: Bundle | Path, results: Any, **options: Any) -> StreamClassifier:
    """Open a stream that repeats itself: one thread, seeded noise."""
    return open_stream(bundle, results, **{"threads": 1, "noise": SeededNoise(0), **options})


def until(true: Any, timeout_s: float = 30.0) -> None:
    """Wait until a condition holds that nobody tells of."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.002)

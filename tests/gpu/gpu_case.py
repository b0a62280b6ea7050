"""What the checks on a GPU share: the bundle, ways to run it, and a cache that is nobody's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from flss_runtime.bundle import Bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engine_cache import CACHE_VARIABLE, EngineCache, Entry
from flss_runtime.engines.cuda import Device
from flss_runtime.engines.trt_build import Target, cache_key
from flss_runtime.noise import NoiseSource, SeededNoise
from flss_runtime.opening import open_classifier


@dataclass(frozen=True)
class Case:
    """What every check gets."""

    bundle: Bundle
    precision: str

    @property
    def tolerance(self) -> float:
        """Largest difference of logits between two ways through the same graphs, relative to the largest logit."""
        return 1e-4 if self.precision == "fp32" else 2e-2

    @contextmanager
    def opened(self, num_samples: int = 100, noise: NoiseSource | None = None) -> Iterator[SmoothedClassifier]:
        gate = 0.0 if self.bundle.has_gate else None
        policy = SmoothingPolicy(num_samples, self.bundle.noise_scale, 0, gate)
        options: dict[str, Any] = {"policy": policy, "noise": noise or SeededNoise(3)}
        with open_classifier(self.bundle, "trt", precision=self.precision, **options) as classifier:
            yield classifier

    def images(self, count: int, seed: int = 0) -> Any:
        size = self.bundle.input.height, self.bundle.input.width
        return np.random.default_rng(seed).random((count, 3, *size), np.float32)

    def graph_by_graph(self, classifier: SmoothedClassifier, images: Any, noise: Any, scale: float) -> Any:
        """Run encoder and head as two engines, with everything through the host between them."""
        latent = classifier.sampler.encoder.run({"images": images})
        return classifier.sampler.head.run({**latent, "noise": noise, "noise_scale": np.array([scale], np.float32)})


def same_votes(found: Any, expected: Any, tolerance: float) -> float:
    """Require logits to agree, and choices wherever the two best classes are not within the tolerance of each other."""
    scale = max(1.0, float(np.abs(expected["logits"]).max()))
    difference = float(np.abs(found["logits"] - expected["logits"]).max()) / scale
    assert difference <= tolerance, f"logits differ by {difference:.2e} of their scale, allowed {tolerance:.0e}"
    best = np.sort(expected["logits"], axis=2)
    clear = best[..., -1] - best[..., -2] > 2 * tolerance * scale
    changed = (found["choices"] != expected["choices"]) & clear
    assert not changed.any(), f"{changed.sum()} clear choices changed"
    return difference


@contextmanager
def private_cache() -> Iterator[EngineCache]:
    """Keep engines in a directory that goes afterwards: a check damages one, which must never be the user's."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield EngineCache()
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


def head_entry(bundle: Bundle, library: ModuleType, device: Device, cache: EngineCache) -> Entry:
    """Return the engine of the head that was opened: in float32, or in float16 where that cannot be built."""
    narrow = ["fp16"] if "fp16" in bundle.precisions("head") else []
    for precision in ("fp32", *narrow):
        key = cache_key(library, bundle.graph("head", precision), Target(device.capability, device))
        entry = cache.entry(key)
        if entry is not None:
            return entry
    raise AssertionError(f"no engine of the head in {cache.root}")

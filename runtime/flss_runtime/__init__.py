"""flss_runtime: from an exported bundle to a decision, with NumPy and one inference engine, without torch.

>>> from flss_runtime import open_classifier
>>> with open_classifier("model.bundle") as classifier:  # doctest: +SKIP
...     decision = classifier.classify(frame)[0]  # frame: (H, W, 3) uint8

A `Decision` has `label` None where the image was rejected.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle, load_bundle
    from flss_runtime.classifier import SmoothedClassifier
    from flss_runtime.decision import Decision, SmoothingPolicy, Status, decide, decide_cascade
    from flss_runtime.engines import Engine, TensorSpec, open_engine
    from flss_runtime.errors import FLSSError
    from flss_runtime.images import InputSpec, fit_image, read_image
    from flss_runtime.latent import LatentGaussian
    from flss_runtime.noise import KeyedNoise, NoiseSource, SeededNoise, SystemNoise
    from flss_runtime.opening import open_classifier
    from flss_runtime.stream.classifier import StreamClassifier
    from flss_runtime.stream.opening import open_stream
    from flss_runtime.stream.results import StreamResult

__all__ = [
    "Bundle",
    "Decision",
    "Engine",
    "FLSSError",
    "InputSpec",
    "KeyedNoise",
    "LatentGaussian",
    "NoiseSource",
    "SeededNoise",
    "SmoothedClassifier",
    "SmoothingPolicy",
    "Status",
    "StreamClassifier",
    "StreamResult",
    "SystemNoise",
    "TensorSpec",
    "decide",
    "decide_cascade",
    "fit_image",
    "load_bundle",
    "open_classifier",
    "open_engine",
    "open_stream",
    "read_image",
]

# Public name -> the module it is imported from when it is first used: a command that needs one error class or `--help`
# does not pay for all of it.
_HOME = {
    "Bundle": "bundle",
    "load_bundle": "bundle",
    "SmoothedClassifier": "classifier",
    "open_classifier": "opening",
    "Decision": "decision",
    "SmoothingPolicy": "decision",
    "Status": "decision",
    "decide": "decision",
    "decide_cascade": "decision",
    "Engine": "engines",
    "TensorSpec": "engines",
    "open_engine": "engines",
    "FLSSError": "errors",
    "InputSpec": "images",
    "fit_image": "images",
    "read_image": "images",
    "LatentGaussian": "latent",
    "KeyedNoise": "noise",
    "NoiseSource": "noise",
    "SeededNoise": "noise",
    "SystemNoise": "noise",
    "StreamClassifier": "stream.classifier",
    "open_stream": "stream.opening",
    "StreamResult": "stream.results",
}

if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

"""Torch against an engine on the same images under the same noise: does the exported classifier still decide the same?

The torch side draws every latent as written in the paper, z = mean + noise_scale * std * noise, and puts it through the
checkpoint's own modules with their batch norms. The exported side has both folded away, so they share no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_edge.checkpoint import Checkpoint
from flss_edge.gate import gate_network
from flss_edge.model import FLSS, Classifier
from flss_export.reference import (
    ByteArray,
    Tensors,
    gate_outputs,
    logit_outputs,
    reference_network,
    reference_outputs,
)
from flss_runtime.bundle import Bundle
from flss_runtime.comparison import Comparison, GateOutputs, Outputs, compare, count_votes, limits_for, relative
from flss_runtime.decision import SmoothingPolicy, confidences
from flss_runtime.engines import Engine, open_engine
from flss_runtime.errors import UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise

CHUNK = 32  # images: bounds the latents of a chunk to 7 MB at N = 100, D = 512


def parity(
    checkpoint: Checkpoint,
    graphs: Bundle | Mapping[str, Path],
    images: ByteArray,
    *,
    gate: Checkpoint | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    noise_scale: float | None = None,
    engine: str = "ort",
    precision: str = "fp32",
    threads: int | None = None,
    strict: bool = True,
    real: bool = True,
) -> Comparison:
    """Compare a checkpoint in torch with its exported graphs in an engine.

    Args:
        checkpoint: What was exported.
        graphs: The bundle, of which encoder and head are compared; or role -> ONNX file for "encoder" and "head", or
            for "fused", and, where they are to be compared, "deterministic" and "logit"; of a cascade also "gate".
        images: (M, H, W, 3) uint8 of the network's size, M >= 1.
        gate: What the gate of a cascade was exported from.
        seed: Of the noise; image i gets `SeededNoise(seed).at(i, N, D)`.
        num_samples: N; by default the bundle's, else 100.
        noise_scale: By default the bundle's, else 2.
        engine: As for `open_engine`.
        precision: Of the bundle's graphs but the head, which stays in float32.
        threads: Of the encoder.
        strict: As for `open_engine`.
        real: Whether the images are real ones.

    Returns:
        The differences of mean, std, logits, deterministic logits and the logits' Gaussian, and every change of votes,
        classes and rejections (these under the bundle's calibrated thresholds for N, if it has them). In fp32
        `failures` is empty iff it passed: tensors within 1e-4 * max(1, largest value), votes within 1, no changed
        winner that was ahead by more than 2. Reduced precision has no such limits: `Comparison.flip_tests` judges its
        decisions.

    Raises:
        UsageError: Images or bundle do not fit the checkpoint's network, or one has a gate and the other has none.
        CheckpointError: The gate does not fit the checkpoint.
        EngineUnavailable: The engine is absent.
        InferenceError: The engine failed while running.
    """
    network = checkpoint.flss()
    plain = None if gate is None else gate_network(gate, checkpoint)
    thresholds: dict[str, Any] = {}
    scale, samples = 2.0, 100
    if isinstance(graphs, Bundle):
        _check_fit(network, graphs)
        scale, samples = graphs.noise_scale, graphs.num_samples
    policy = SmoothingPolicy(
        samples if num_samples is None else num_samples, scale if noise_scale is None else noise_scale, 0
    )
    if isinstance(graphs, Bundle):
        if policy.noise_scale == graphs.noise_scale and graphs.calibration(policy.num_samples) is not None:
            calibrated = graphs.policy(policy.num_samples)
            thresholds = {"min_votes": calibrated.min_votes, "min_confidence": calibrated.min_confidence}
        graphs = _files(graphs, precision)
    if ("gate" in graphs) != (plain is not None):
        problem = "a gate's checkpoint was given, but the graphs have no gate" if plain else "the graphs have a gate"
        raise UsageError(problem, "Give the gate's checkpoint with a cascade, and with nothing else.")
    options: dict[str, Any] = {"gate": plain, "engine": engine, "threads": threads, "strict": strict}
    reference, candidate = replay(network, {precision: graphs}, images, seed, policy, **options)[precision]
    return compare(reference, candidate, **thresholds, name="torch", real=real, limits=limits_for(precision))


def replay(
    model: FLSS,
    candidates: Mapping[str, Mapping[str, Path]],
    images: ByteArray,
    seed: int,
    policy: SmoothingPolicy,
    *,
    gate: Classifier | None = None,
    engine: str = "ort",
    threads: int | None = None,
    strict: bool = True,
) -> dict[str, tuple[Outputs, Outputs]]:
    """Run the same images and noise through torch and through sets of graphs in an engine, in chunks.

    Args:
        model: In torch.
        candidates: Name -> role -> ONNX file.
        images: (M, H, W, 3) uint8.
        seed: Of the noise.
        policy: Its N and noise scale.
        gate: In torch.
        engine: As for `open_engine`.
        threads: Of everything but the head.
        strict: As for `open_engine`.

    Returns:
        Of each candidate, what torch and what the engine made of them: votes (M, K) of all images; of each tensor only
        the two elements a chunk that `compare` needs, the one that differs most and the largest, so memory does not
        grow with M * N * K.

    Raises:
        UsageError: The images do not fit the network.
    """
    size, classes = model.config.image_size, model.config.num_classes
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3) or len(images) == 0:
        raise UsageError(
            f"images have shape {images.shape} and dtype {images.dtype}; expected (M, {size}, {size}, 3) uint8, M >= 1",
            "Load them at the size that the network was trained on.",
        )
    network, plain = reference_network(model), None if gate is None else reference_network(gate)
    noise = SeededNoise(seed)
    pairs = {name: _Pair(classes) for name in candidates}
    with ExitStack() as stack:
        engines = {
            name: {
                role: stack.enter_context(
                    open_engine(path, engine, threads=1 if role == "head" else threads, strict=strict)
                )
                for role, path in graphs.items()
            }
            for name, graphs in candidates.items()
        }
        for chunk in _chunks(images):
            drawn = noise.take(len(chunk), policy.num_samples, model.config.features)
            expected = reference_outputs(network, chunk, drawn, policy.noise_scale)
            if plain is not None:
                expected |= gate_outputs(plain, chunk) | {"mean_choices": expected["deterministic"].argmax(axis=1)}
            if any("logit" in graphs for graphs in candidates.values()):
                expected |= logit_outputs(network, expected)
            for name, pair in pairs.items():
                pair.take(dict(expected), _engine_outputs(engines[name], chunk, drawn, policy.noise_scale))
    return {name: pair.outputs() for name, pair in pairs.items()}


class _Pair:
    """What torch and one set of graphs made of the chunks so far."""

    def __init__(self, classes: int) -> None:
        self.sides = _Side(classes), _Side(classes)
        self.tensors: dict[str, list[tuple[Any, Any]]] = {}

    def take(self, expected: Tensors, found: Tensors) -> None:
        self.sides[0].take(expected)
        self.sides[1].take(found)
        if "covariance" in found:
            expected["covariance"], found["covariance"] = relative(expected["covariance"], found["covariance"])
        for name, values in found.items():
            self.tensors.setdefault(name, []).append(_extremes(expected[name], values))

    def outputs(self) -> tuple[Outputs, Outputs]:
        pairs = {name: [np.concatenate(s) for s in zip(*parts, strict=True)] for name, parts in self.tensors.items()}
        reference, candidate = (
            side.outputs({name: pair[index] for name, pair in pairs.items()}) for index, side in enumerate(self.sides)
        )
        return reference, candidate


@dataclass
class _Side:
    """What one implementation made of the chunks so far."""

    classes: int
    votes: list[Any] = field(default_factory=list)
    confidence: list[Any] = field(default_factory=list)
    mean_choices: list[Any] = field(default_factory=list)

    def take(self, outputs: Tensors) -> None:
        """Take what decides out of a chunk's outputs, which leaves the tensors to compare."""
        self.votes.append(count_votes(outputs.pop("choices"), self.classes))
        if "gate_logits" in outputs:
            self.confidence.append(confidences(outputs["gate_logits"]))
            self.mean_choices.append(outputs.pop("mean_choices"))

    def outputs(self, tensors: Tensors) -> Outputs:
        gate = None
        if self.confidence:
            gate = GateOutputs(np.concatenate(self.confidence), np.concatenate(self.mean_choices))
        return Outputs(np.concatenate(self.votes), tensors, gate)


def _engine_outputs(
    engines: Mapping[str, Engine], images: ByteArray, noise: npt.NDArray[np.float32], noise_scale: float
) -> Tensors:
    pixels = to_nchw(images)
    drawn: Tensors = {"noise": noise, "noise_scale": np.array([noise_scale], np.float32)}
    if "fused" in engines:
        found = engines["fused"].run({"images": pixels, **drawn})
        found["deterministic"] = found.pop("mean_logits")
    else:
        found = _two_graphs(engines, pixels, drawn)
    if "logit" in engines:
        found |= engines["logit"].run({"images": pixels})
    if "gate" in engines:
        found["gate_logits"] = engines["gate"].run({"images": pixels})["logits"]
        if "fused" in engines:
            found["mean_choices"] = found["deterministic"].argmax(axis=1)
    return found


def _two_graphs(engines: Mapping[str, Engine], pixels: npt.NDArray[np.float32], drawn: Tensors) -> Tensors:
    latent = engines["encoder"].run({"images": pixels})
    found: Tensors = {**latent, **engines["head"].run({**latent, **drawn})}
    if "deterministic" in engines:
        found["deterministic"] = engines["deterministic"].run({"images": pixels})["logits"]
    if "gate" in engines:
        still = {"noise": np.zeros_like(drawn["noise"][:1, :1]), "noise_scale": np.ones(1, np.float32)}
        found["mean_choices"] = engines["head"].run({**latent, **still})["choices"][:, 0]
    return found


def _extremes(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the elements that differ most (a NaN before all others) and that are largest, of both arrays."""
    with np.errstate(invalid="ignore"):
        index = [np.abs(expected - found).argmax(), np.abs(expected).argmax()]
    return expected.ravel()[index], found.ravel()[index]


def _chunks(images: ByteArray) -> Iterator[ByteArray]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]


def _files(bundle: Bundle, precision: str) -> dict[str, Path]:
    """Return the graphs that a classifier of that precision runs; all of these have to be there but the baseline."""
    files = {"encoder": bundle.graph("encoder", precision), "head": bundle.graph("head")}
    if bundle.has_gate:
        files["gate"] = bundle.graph("gate", precision)
    if precision in bundle.precisions("deterministic"):
        files["deterministic"] = bundle.graph("deterministic", precision)
    return files


def _check_fit(model: FLSS, bundle: Bundle) -> None:
    ours = (model.config.image_size, model.config.features, model.config.num_classes)
    theirs = (bundle.input.height, bundle.latent_dim, bundle.num_classes)
    if ours != theirs or bundle.input.width != bundle.input.height:
        raise UsageError(
            f"the checkpoint has image size, latent size and classes {ours}; {bundle.path.name} has {theirs}",
            "Give the checkpoint that the bundle was exported from.",
        )

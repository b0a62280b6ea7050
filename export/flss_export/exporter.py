"""Checkpoint -> bundle: graphs, golden and reference data, and the comparison with torch that comes before both."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from flss_edge import __version__
from flss_edge.checkpoint import Checkpoint
from flss_edge.data import ImageSet
from flss_edge.gate import gate_network
from flss_edge.model import FLSS, Classifier
from flss_export.graphs import GraphSet, build_graphs, file_name, gate_graph
from flss_export.parity import replay
from flss_export.precision import FULL, add_precisions, check_precisions, fused_name, precision_of, variants
from flss_export.reference import ByteArray, gate_outputs, reference_network, reference_outputs
from flss_export.sampling_graphs import add_sampling_graphs, check_sampling
from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import Bundle, write_bundle
from flss_runtime.comparison import EXACT, REDUCED, Comparison, Outputs, compare
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.errors import CheckFailed, CheckpointError, DataError, OutputError, UsageError
from flss_runtime.images import InputSpec
from flss_runtime.manifest import GOLDEN_NAME, REFERENCE_NAME
from flss_runtime.noise import SeededNoise
from flss_runtime.sampling import LATENT

GOLDEN_IMAGES = 4
REFERENCE_IMAGES = 600
SYNTHETIC_IMAGES = 64
MAX_IMAGE_BYTES = 15_500_000  # reference.npz stays below 16 MB with its votes and labels: 102 images of 224x224

_log = logging.getLogger(__name__)


def export_bundle(
    checkpoint: Checkpoint,
    target: str | Path,
    *,
    gate: Checkpoint | None = None,
    data: ImageSet | None = None,
    precisions: Sequence[str] = ("fp32",),
    quantization: ImageSet | None = None,
    overwrite: bool = False,
    num_samples: int = 100,
    noise_scale: float = 2.0,
    seed: int = 0,
    sampling: str = LATENT,
    fused: bool = False,
) -> Bundle:
    """Export a checkpoint as a bundle whose graphs decide as torch does; nothing is left behind where they do not.

    Args:
        checkpoint: As `load_checkpoint` returns it.
        target: The bundle's directory.
        gate: A plain classifier, such as one trained with CCAT, that makes the bundle a cascade: what it is confident
            about is not put to the vote.
        data: Labelled images of the network's size, best ones it was not trained on. Up to 600, evenly spaced, become
            the reference images that travel with the bundle. Without them synthetic images are compared, and the
            bundle says so.
        precisions: "fp32", and of "fp16" and "int8" those that the bundle gets as well. A reduced one is compared with
            torch too, but not refused for changed decisions: the manifest has them, and `flss-edge verify` judges them.
        quantization: Real images that int8 finds its ranges on, best training images; up to 128 are taken.
        overwrite: Whether an existing bundle may be replaced.
        num_samples: Default N of the policy, and of golden and reference votes.
        noise_scale: Default factor on the standard deviation, likewise.
        seed: Of the noise of golden and reference votes.
        sampling: "latent", or "logit" for a graph of the logits' Gaussian as well, of a linear head with at most 32
            classes.
        fused: Whether encoder and head go into the bundle as one graph, too, which costs a second copy of the weights.

    Returns:
        The bundle, not calibrated yet; its manifest holds the comparison under "parity".

    Raises:
        CheckFailed: ONNX Runtime decides differently from torch, torch's exporter failed, or the network does not fit
            a precision.
        CheckpointError: A checkpoint has no digest, because it was never saved; or the gate does not fit the other.
        DataError: `data` does not fit the network.
        OutputError: `target` exists or cannot be written.
        UsageError: `num_samples`, `noise_scale` or `seed` is out of range, a precision is unknown, the head has no such
            sampling, or int8 was asked for without images to quantize on.
        EngineUnavailable: ONNX Runtime is not installed.
    """
    refuse_existing(target, overwrite)
    for each in (checkpoint, gate):
        if each is not None and not each.sha256:
            raise CheckpointError(
                "this checkpoint was never saved, so no digest can tie the bundle to it", "Save it, then load the file."
            )
    policy = SmoothingPolicy(num_samples, noise_scale, 0)
    precisions = check_precisions(precisions)
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is out of range", "Give a whole number from 0 to 2**63 - 1.")
    network = checkpoint.flss()
    head = reference_network(network).head
    check_sampling(head, sampling)
    plain = None if gate is None else gate_network(gate, checkpoint)
    chosen = _choose_images(network, data, seed)
    _check_quantization(network, precisions, quantization)
    graphs = build_graphs(network)
    if plain is not None:
        graphs = replace(graphs, graphs={**graphs.graphs, "gate": gate_graph(plain)})
    graphs = add_precisions(graphs, precisions, chosen.images, quantization)
    graphs = replace(graphs, graphs=add_sampling_graphs(graphs.graphs, head, sampling=sampling, fused=fused))
    reference, parity = _compare(network, plain, graphs, chosen, seed, policy)
    files: dict[str, bytes | Path] = {
        **graphs.files,
        GOLDEN_NAME: _golden(network, plain, chosen.images[:GOLDEN_IMAGES], seed, policy),
        REFERENCE_NAME: _reference(chosen, reference, seed, policy),
    }
    manifest = _manifest(checkpoint, Path(target), graphs, data, seed) | {"parity": parity}
    if "int8" in precisions and quantization is not None:
        manifest["data"] |= {"quantization": quantization.source, "quantization_sha256": quantization.sha256}
    if gate is not None:
        manifest["gate_checkpoint"] = _origin(gate)
    defaults = {"num_samples": policy.num_samples, "noise_scale": policy.noise_scale}
    return write_bundle(target, manifest, defaults, files, overwrite)


@dataclass(frozen=True, eq=False, slots=True)
class _Images:
    """Images (M, H, W, 3) uint8, labels (M,) in the checkpoint's numbering if known, and whether they are real."""

    images: ByteArray
    labels: npt.NDArray[np.int64] | None
    real: bool


def _choose_images(model: FLSS, data: ImageSet | None, seed: int) -> _Images:
    size = model.config.image_size
    limit = max(1, MAX_IMAGE_BYTES // (size * size * 3))
    if data is None:
        _log.warning("no data given: torch and the graphs are compared on synthetic images only")
        return _Images(_synthetic_images(min(SYNTHETIC_IMAGES, limit), size, seed), None, real=False)
    if len(data) == 0 or data.images.shape[1:] != (size, size, 3):
        raise DataError(
            f"{data.source}: {len(data)} images of shape {data.images.shape[1:]}; the network takes {(size, size, 3)}",
            "Export with images of the size it was trained on, or without data.",
        )
    count = min(REFERENCE_IMAGES, limit, len(data))
    index = np.arange(count) * len(data) // count  # evenly spaced, because folders are sorted by class
    known = int(data.labels.max()) < model.config.num_classes
    return _Images(data.images[index], data.labels[index] if known else None, real=True)


def _synthetic_images(count: int, size: int, seed: int) -> ByteArray:
    """Return blocks of colour under noise, (count, size, size, 3) uint8, from raw generator output: stable for ever."""
    raw = np.random.Philox(key=seed).random_raw(count * (size * size + 16) * 3 // 8 + 1).view(np.uint8)
    coarse = raw[: count * 48].reshape(count, 4, 4, 3)
    fine = raw[count * 48 : count * (48 + size * size * 3)].reshape(count, size, size, 3)
    block = np.arange(size) * 4 // size
    return np.asarray(coarse[:, block][:, :, block] // 4 * 3 + fine // 4, np.uint8)


def _compare(
    model: FLSS, gate: Classifier | None, graphs: GraphSet, chosen: _Images, seed: int, policy: SmoothingPolicy
) -> tuple[Outputs, dict[str, Any]]:
    """Return torch's outputs, and how ONNX Runtime compares, unless it decides differently in float32.

    The comparison is the manifest's: that of float32, under "fused" that of its fused graph, and under "reduced" those
    of the other precisions.
    """
    with tempfile.TemporaryDirectory(prefix="flss-export-") as folder:
        paths = {key: Path(folder) / file_name(key) for key in graphs.graphs}
        try:
            for key, path in paths.items():
                path.write_bytes(graphs.graphs[key])
        except OSError as error:
            raise OutputError(
                f"the graphs cannot be written to {folder} ({error.strerror})", "Free some space there, or set TMPDIR."
            ) from error
        networks = {
            name: {role: paths[key] for role, key in keys.items()} for name, keys in variants(graphs.graphs).items()
        }
        replayed = replay(model, networks, chosen.images, seed, policy, gate=gate)
    reports = {name: _judged(name, *outputs, real=chosen.real).to_json() for name, outputs in replayed.items()}
    exact, fused = reports.pop(FULL), reports.pop(fused_name(FULL), None)
    further = {name: found for name, found in {"fused": fused, "reduced": reports}.items() if found}
    return replayed[FULL][0], {**exact, **further}


def _judged(network: str, reference: Outputs, candidate: Outputs, *, real: bool) -> Comparison:
    limits = EXACT if network in (FULL, fused_name(FULL)) else REDUCED
    name = "torch against ort" if network == FULL else f"torch against ort in {network}"
    comparison = compare(reference, candidate, name=name, real=real, limits=limits)
    if not comparison.passed:
        raise CheckFailed(
            f"the exported graphs do not decide as the checkpoint does: {'; '.join(comparison.failures)}",
            f"Nothing was written. Try another torch (this is {torch.__version__}) or onnxruntime, and report it.",
        )
    return comparison


def _check_quantization(model: FLSS, precisions: Sequence[str], images: ImageSet | None) -> None:
    if "int8" not in precisions:
        return
    size = model.config.image_size
    if images is None:
        raise UsageError("int8 needs real images to find its ranges on", "Export with data: --data DATA.")
    if len(images) == 0 or images.images.shape[1:] != (size, size, 3):
        raise DataError(
            f"{images.source}: {len(images)} images of shape {images.images.shape[1:]} to quantize on; the network "
            f"takes {(size, size, 3)}",
            "Give images of the size it was trained on.",
        )


def _golden(model: FLSS, gate: Classifier | None, images: ByteArray, seed: int, policy: SmoothingPolicy) -> bytes:
    noise = SeededNoise(seed).take(len(images), policy.num_samples, model.config.features)
    expected = reference_outputs(reference_network(model), images, noise, policy.noise_scale)
    del expected["deterministic"]
    if gate is not None:
        expected |= gate_outputs(reference_network(gate), images)
    scale = np.float32(policy.noise_scale)
    return _npz({"images": images, "noise": noise, "noise_scale": scale, **expected})


def _reference(chosen: _Images, expected: Outputs, seed: int, policy: SmoothingPolicy) -> bytes:
    arrays: dict[str, Any] = {
        "images": chosen.images,
        "seed": np.int64(seed),
        "num_samples": np.int64(policy.num_samples),
        "noise_scale": np.float64(policy.noise_scale),
        "votes": expected.votes.astype(np.int32),
        "real": np.bool_(chosen.real),
    }
    if chosen.labels is not None:
        arrays["labels"] = chosen.labels
    if expected.gate is not None:
        arrays["gate_confidence"] = expected.gate.confidence
        arrays["mean_choices"] = expected.gate.mean_choices.astype(np.int32)
    return _npz(arrays)


def _npz(arrays: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()  # numpy stamps every member 1980-01-01: the same arrays give the same bytes
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _manifest(
    checkpoint: Checkpoint, target: Path, graphs: GraphSet, data: ImageSet | None, seed: int
) -> dict[str, Any]:
    config = checkpoint.model.config
    return {
        "name": target.absolute().name.removesuffix(".bundle"),
        "input": InputSpec(config.image_size, config.image_size).to_json(),
        "class_names": list(checkpoint.class_names),
        "num_classes": config.num_classes,
        "latent_dim": config.features,
        "graphs": {key: file_name(key) for key in graphs.graphs},
        "precision": {key: precision_of(key) for key in graphs.graphs},
        "opset": graphs.opset,
        "checkpoint": _origin(checkpoint),
        "data": {
            "validation_per_class": checkpoint.training.get("validation_per_class"),
            "reference": None if data is None else data.source,
            "reference_sha256": None if data is None else data.sha256,
            "seed": seed,
        },
        "tools": {
            "flss_edge": __version__,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "exporter": graphs.exporter,
        },
    }


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"sha256": checkpoint.sha256, "origin": checkpoint.origin, "training": checkpoint.training}

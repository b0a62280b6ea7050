"""Small real bundles: the graphs of conftest's `tiny` model with golden and reference data computed in NumPy."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.bundle import Bundle, write_bundle
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise

NUM_SAMPLES, NOISE_SCALE, SEED = 40, 2.0, 7


def logits_of(model: Any, images: npt.NDArray[np.uint8], noise: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The method written out: (B, N, K) float64."""
    mean, std = model.encode(to_nchw(images))
    latents = mean[:, None].astype(np.float64) + NOISE_SCALE * std[:, None] * noise
    return latents @ model.head_weight + model.head_bias


def votes_of(choices: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    return np.array([np.bincount(row, minlength=num_classes) for row in choices])


def random_images(model: Any, count: int, seed: int = 3) -> npt.NDArray[np.uint8]:
    shape = (count, model.spec.height, model.spec.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def golden_arrays(model: Any) -> dict[str, Any]:
    images = random_images(model, 4, seed=11)
    noise = np.random.default_rng(5).standard_normal((4, NUM_SAMPLES, model.latent_dim)).astype(np.float32)
    mean, std = model.encode(to_nchw(images))
    logits = logits_of(model, images, noise)
    return {
        "images": images,
        "noise": noise,
        "noise_scale": np.float32(NOISE_SCALE),
        "mean": mean,
        "std": std,
        "logits": logits.astype(np.float32),
        "choices": logits.argmax(axis=2),
    }


def reference_arrays(model: Any, count: int = 60, real: bool = True) -> dict[str, Any]:
    images = random_images(model, count)
    noise = np.stack([SeededNoise(SEED).at(index, NUM_SAMPLES, model.latent_dim) for index in range(count)])
    choices = logits_of(model, images, noise).argmax(axis=2)
    return {
        "images": images,
        "labels": np.zeros(count, np.int64),
        "seed": np.int64(SEED),
        "num_samples": np.int64(NUM_SAMPLES),
        "noise_scale": np.float32(NOISE_SCALE),
        "votes": votes_of(choices, model.num_classes),
        "real": np.bool_(real),
    }


def npz(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def manifest_fields(model: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "created": "2026-01-31T12:00:00Z",
        "input": model.spec.to_json(),
        "class_names": [f"class {index}" for index in range(model.num_classes)],
        "num_classes": model.num_classes,
        "latent_dim": model.latent_dim,
        "graphs": {"encoder": "encoder.onnx", "head": "head.onnx"},
        "precision": {"encoder": "fp32", "head": "fp32"},
        "opset": 17,
        "checkpoint": {"sha256": "0" * 64, "origin": "flss-edge"},
        "data": {},
        "tools": {},
    }


def write_tiny(target: Path, model: Any, **changed: Any) -> Bundle:
    """Write a bundle; `changed` replaces or adds files, and `manifest` and `policy` replace keys of these."""
    manifest = {**manifest_fields(model), **changed.pop("manifest", {})}
    policy = {"num_samples": NUM_SAMPLES, "noise_scale": NOISE_SCALE, **changed.pop("policy", {})}
    files: dict[str, Any] = {
        "encoder.onnx": model.encoder,
        "head.onnx": model.head,
        "golden.npz": npz(golden_arrays(model)),
    }
    files.update(changed.pop("files", {}))
    return write_bundle(target, manifest, policy, files, **changed)


def further(model: Any, *roles: str) -> dict[str, Any]:
    """What `write_tiny` takes to list further graphs of the model, such as "fused" and "logit", too."""
    fields = manifest_fields(model)
    manifest = {
        "graphs": {**fields["graphs"], **{role: f"{role}.onnx" for role in roles}},
        "precision": {**fields["precision"], **dict.fromkeys(roles, "fp32")},
    }
    return {"manifest": manifest, "files": {f"{role}.onnx": getattr(model, role) for role in roles}}


def entry(**changed: Any) -> dict[str, Any]:
    return {"num_samples": NUM_SAMPLES, "noise_scale": NOISE_SCALE, "mode": "latent", "min_votes": 17, **changed}


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and bind the policy to it again, as somebody with write access can."""
    place = bundle / "manifest.json"
    manifest = json.loads(place.read_text())
    edit(manifest)
    place.write_text(json.dumps(manifest))
    seal_policy(bundle, lambda policy: None)


def seal_policy(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the policy and give it the digests that belong to it, computed as the specification says."""
    place = bundle / "policy.json"
    policy = json.loads(place.read_text())
    edit(policy)
    policy["manifest_sha256"] = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    policy.pop("sha256", None)
    canonical = json.dumps(policy, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    policy["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    place.write_text(json.dumps(policy))

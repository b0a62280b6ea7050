"""Further precisions of a bundle's graphs: which roles have them, what they are made from, and under which key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from flss_edge.data import ImageSet
from flss_export.activations import FloatArray
from flss_export.graphs import GraphSet
from flss_export.half import half_head, half_network
from flss_export.quantize import calibrate, covers, quantize
from flss_runtime.errors import UsageError
from flss_runtime.images import to_nchw
from flss_runtime.manifest import PRECISIONS

FULL, HALF, INTEGER = PRECISIONS
QUANTIZATION_IMAGES = 128
_NETWORKS = ("encoder", "deterministic", "gate")  # the graphs that take images
_TYPICAL_IMAGES = 16


def parse_precisions(text: str) -> tuple[str, ...]:
    """Read "fp32,fp16,int8"; float32 comes first in any case, because every other precision is measured against it.

    Raises:
        UsageError: There is no such precision.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    return check_precisions([FULL, *names])


def check_precisions(names: Iterable[str]) -> tuple[str, ...]:
    """Return each precision once, in the order of the format.

    Raises:
        UsageError: There is no such precision, or float32 is not among them.
    """
    asked = set(names)
    if unknown := sorted(asked - set(PRECISIONS)):
        raise UsageError(f"there is no precision {unknown[0]!r}", f"choose from: {', '.join(PRECISIONS)}")
    if FULL not in asked:
        raise UsageError("every bundle has its graphs in fp32", "name fp32 too")
    return tuple(name for name in PRECISIONS if name in asked)


def precision_of(key: str) -> str:
    """Return the precision of a graph key: "encoder" is fp32, "encoder.int8" int8."""
    return key.partition(".")[2] or FULL


def role_of(key: str) -> str:
    """Return the role of a graph key."""
    return key.partition(".")[0]


def variants(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the networks that these graphs make up: name -> role -> key.

    A precision takes the float32 head. The fp16 head, which only an engine without float32 products needs, makes a
    network of its own, and so does every encoder that is one graph with its head.
    """
    known = list(keys)
    base = {role: role for role in known if precision_of(role) == FULL and role != "fused"}
    found = {FULL: base}
    for key in known:
        if precision_of(key) != FULL and role_of(key) not in ("head", "fused"):
            found.setdefault(precision_of(key), dict(base))[role_of(key)] = key
    if f"head.{HALF}" in known:
        narrow = {role: key for role, key in found[HALF].items() if role != "logit"}  # has no head of its own
        found[f"{HALF} with its head"] = {**narrow, "head": f"head.{HALF}"}
    for key in known:
        if role_of(key) == "fused":
            gate = {role: key for role, key in found[precision_of(key)].items() if role == "gate"}
            found[fused_name(precision_of(key))] = {**gate, "fused": key}
    return found


def fused_name(precision: str) -> str:
    """Return what the network is called whose encoder and head are one graph."""
    return f"{precision} in one graph"


def add_precisions(
    graphs: GraphSet, precisions: Iterable[str], typical: np.ndarray, quantization: ImageSet | None
) -> GraphSet:
    """Return the graphs with those of further precisions.

    Args:
        graphs: In float32.
        precisions: As `check_precisions` returns them.
        typical: (M, H, W, 3) uint8, images to see in which range the values lie.
        quantization: Real images to quantize on, no test images; only for int8.

    Raises:
        CheckFailed: The network does not fit the precision.
    """
    added: dict[str, bytes] = {}
    if HALF in precisions:
        pixels = to_nchw(typical[:_TYPICAL_IMAGES])
        for role in _networks(graphs.graphs):
            added[f"{role}.{HALF}"] = half_network(role, graphs.graphs[role], pixels)
        added[f"head.{HALF}"] = half_head(graphs.graphs["head"])
    if INTEGER in precisions and quantization is not None:
        pixels = to_nchw(_evenly_spaced(quantization))
        added |= _integer_graphs(graphs.graphs, pixels)
    return replace(graphs, graphs={**graphs.graphs, **added})


def _integer_graphs(graphs: Mapping[str, bytes], pixels: FloatArray) -> dict[str, bytes]:
    """Quantize the networks; the baseline shares the encoder's backbone, and so what was found for it."""
    calibration = calibrate(graphs["encoder"], pixels)
    added = {}
    for role in _networks(graphs):
        found = calibration
        if role == "gate" or not covers(calibration, graphs[role]):
            found = calibrate(graphs[role], pixels)
        added[f"{role}.{INTEGER}"] = quantize(role, graphs[role], found)
    return added


def _networks(graphs: Mapping[str, bytes]) -> list[str]:
    return [role for role in _NETWORKS if role in graphs]


def _evenly_spaced(images: ImageSet) -> np.ndarray:
    count = min(QUANTIZATION_IMAGES, len(images))
    return images.images[np.arange(count) * len(images) // count]

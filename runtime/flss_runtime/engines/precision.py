"""Names of the arithmetic that a layer runs in, gathered from what each library calls its types and layers."""

from __future__ import annotations

from collections.abc import Iterable

NONE, UNKNOWN = "none", "unknown"
# Libraries' type names -> ours, from the narrowest arithmetic to the widest.
_TYPES = {
    "int8": ("int8", "uint8", "i8", "u8"),
    "bf16": ("bfloat16", "bf16"),
    "fp16": ("float16", "f16"),
    "fp32": ("float", "float32", "f32"),
    "fp64": ("double", "float64", "f64"),
}
_ORDER = tuple(_TYPES)
_PRECISIONS = {name: precision for precision, names in _TYPES.items() for name in names}


def is_heavy(layer: str) -> bool:
    """Tell whether a layer of this type is a convolution or a matrix product, fused and quantized ones included."""
    name = layer.lower().replace("_", "")
    return name != "convert" and any(kind in name for kind in ("conv", "matmul", "gemm", "fullyconnected"))


def narrowest(types: Iterable[str]) -> str:
    """Return the narrowest precision among a library's type names; "none" without any, "unknown" for a strange one."""
    found = {_PRECISIONS.get(name, UNKNOWN) for name in types}
    if not found:
        return NONE
    return UNKNOWN if UNKNOWN in found else min(found, key=_ORDER.index)

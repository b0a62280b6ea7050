"""Input for runs whose result does not matter: measuring and reading back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flss_runtime.engines import Tensors, TensorSpec


def random_tensors(inputs: Mapping[str, TensorSpec]) -> Tensors:
    """Make one random tensor an input, free dimensions taken as 1, values in [0, 1) or 0 to 255."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for name, spec in inputs.items():
        shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        integers = np.issubdtype(np.dtype(spec.dtype), np.integer)
        values = random.integers(0, 128, shape) if integers else random.random(shape)
        tensors[name] = values.astype(spec.dtype)
    return tensors

"""An encoder and its head run as one, where an engine can: nothing but images goes in, nothing but votes comes out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flss_runtime.engines import Engine
from flss_runtime.noise import NoiseSource


class Pair(Protocol):
    """An encoder and its head; not safe for calls from several threads at once."""

    def sample(
        self, images: npt.NDArray[np.float32], noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Run both graphs.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            noise: Each image takes its window of it, as with `NoiseSource.take`.
            num_samples: N.
            noise_scale: Factor on the standard deviation.

        Returns:
            logits (B, N, K) and choices (B, N), the caller's own.

        Raises:
            InferenceError: The engine failed.
        """
        ...

    def close(self) -> None:
        """Free what the pair holds beside its engines; before these are closed."""
        ...


def join(encoder: Engine, head: Engine) -> Pair | None:
    """Make a pair of two engines, None where they cannot be one."""
    make: Any = getattr(encoder, "join", None)
    pair: Pair | None = None if make is None else make(head)
    return pair

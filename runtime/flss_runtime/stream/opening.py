"""From a bundle to a stream that is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.errors import BundleError
from flss_runtime.noise import NoiseSource, SystemNoise
from flss_runtime.opening import open_classifier
from flss_runtime.sampling import LATENT
from flss_runtime.stream.backoff import Backoff
from flss_runtime.stream.classifier import BACKOFF, StreamClassifier
from flss_runtime.stream.record import FrameRecorder
from flss_runtime.stream.results import Origin, StreamResult
from flss_runtime.stream.temporal import TemporalVote


def open_stream(
    bundle: Bundle | str | Path,
    on_result: Callable[[StreamResult], None],
    engine: str = "ort",
    *,
    precision: str = "fp32",
    sampling: str = LATENT,
    fused: bool | None = None,
    num_samples: int | None = None,
    reduced_samples: int | None = None,
    noise: NoiseSource | None = None,
    threads: int | None = None,
    strict: bool = True,
    deadline_s: float | None = None,
    steady: TemporalVote | None = None,
    record: FrameRecorder | None = None,
    backoff: Backoff = BACKOFF,
    stall_s: float = 2.0,
) -> StreamClassifier:
    """Open a bundle as a stream: load and verify it, open its graphs and run them until they are warm.

    After a fault of the engine the bundle is verified again and has to be the same one; the thresholds and the noise
    source stay those of the start.

    Args:
        bundle: A loaded bundle, or its path.
        on_result: Called with each result, in a thread of the stream; see `StreamClassifier`.
        engine: As for `open_classifier`, as are `precision`, `sampling`, `fused`, `threads` and `strict`.
        precision: See there.
        sampling: See there.
        fused: See there.
        num_samples: Latent samples an image; None takes the bundle's own number.
        reduced_samples: Fewer ones, for a frame that has no time for all; the bundle has to be calibrated for them too.
        noise: Where the normals come from, for this stream alone; None takes `SystemNoise`. To repeat decisions later,
            pass one whose key is recorded.
        threads: See `open_classifier`.
        strict: See there.
        deadline_s: As for `StreamClassifier`, as are `steady`, `record`, `backoff` and `stall_s`.
        steady: See there.
        record: See there.
        backoff: See there.
        stall_s: See there.

    Returns:
        The stream, ready; close it or use it as a context manager.

    Raises:
        UsageError: Values that make no sense, or not together.
        BundleError: The bundle cannot be loaded or verified.
        UncalibratedError: It has no threshold for one of the numbers of samples.
        EngineUnavailable: As `open_classifier`.
        InferenceError: The engine failed while it was warmed up.
    """
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    policy = loaded.policy(num_samples, sampling)
    reduced = None if reduced_samples is None else loaded.policy(reduced_samples, sampling)
    options: dict[str, Any] = {
        "precision": precision,
        "sampling": sampling,
        "fused": fused,
        "policy": policy,
        "noise": noise or SystemNoise(),
        "threads": threads,
        "strict": strict,
    }
    return StreamClassifier(
        _Opener(loaded, engine, options),
        on_result,
        origin=Origin(engine, precision, sampling, loaded.path.name, loaded.digest, loaded.noise_scale),
        deadline_s=deadline_s,
        reduced=reduced,
        steady=steady,
        record=record,
        backoff=backoff,
        stall_s=stall_s,
    )


class _Opener:
    """Opens the same classifier again and again; from the second time on it verifies the bundle before."""

    def __init__(self, bundle: Bundle, engine: str, options: dict[str, Any]) -> None:
        self._bundle, self._engine, self._options = bundle, engine, options
        self._verified = True

    def __call__(self) -> SmoothedClassifier:
        if not self._verified and load_bundle(self._bundle.path).digest != self._bundle.digest:
            raise BundleError(
                f"{self._bundle.path} was replaced by another bundle while it was running",
                "put the old one back, or open a new stream",
            )
        self._verified = False
        return open_classifier(self._bundle, self._engine, **self._options)

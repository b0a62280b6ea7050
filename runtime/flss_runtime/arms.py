"""The things a benchmark compares: each takes one host image to one answer, and owns the engines it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arrays import read_golden, read_reference
from flss_runtime.bundle import Bundle
from flss_runtime.bundle_engines import BundleEngines, open_bundle_engines
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy, Status
from flss_runtime.engines import Engine, Tensors, TensorSpec, open_engine
from flss_runtime.errors import InferenceError
from flss_runtime.images import InputSpec, to_nchw
from flss_runtime.manifest import GOLDEN_NAME, REFERENCE_NAME
from flss_runtime.noise import NoiseSource, SeededNoise
from flss_runtime.opening import open_classifier

DETERMINISTIC = "deterministic"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Arm:
    """One contender of the benchmark.

    Attributes:
        name: "deterministic", or "n" and the number of samples.
        num_samples: None for the deterministic baseline.
        frame: takes one (H, W, 3) uint8 image on the host to its answer; this call is what is timed.
        close: frees the engines.
    """

    name: str
    num_samples: int | None
    frame: Callable[[NDArray[np.uint8]], object]
    close: Callable[[], None]


def smoothed_name(num_samples: int) -> str:
    """Return the name of the arm with so many samples."""
    return f"n{num_samples}"


@dataclass(frozen=True)
class Setting:
    """What all arms have in common: engine, precision of the network, threads of all but the head, and strictness."""

    engine: str
    precision: str
    threads: int | None
    strict: bool = True


def open_deterministic(bundle: Bundle, setting: Setting) -> Arm:
    """Open the baseline: the same network without std head and without sampling, image to class."""
    graph = _open_baseline(bundle, setting)
    return Arm(DETERMINISTIC, None, deterministic_frame(graph, bundle.input), graph.close)


def deterministic_frame(graph: Engine, spec: InputSpec) -> Callable[[NDArray[np.uint8]], int]:
    """Return the loop body a careful user of a plain classifier would write; it allocates its input once, as we do."""
    (name,) = graph.inputs
    buffer = np.empty((1, 3, spec.height, spec.width), np.float32)

    def frame(image: NDArray[np.uint8]) -> int:
        return int(graph.run({name: to_nchw(image[None], buffer)})["choice"][0])

    return frame


def _open_baseline(bundle: Bundle, setting: Setting) -> Engine:
    graph = bundle.graph(DETERMINISTIC, setting.precision)
    return open_engine(graph, setting.engine, threads=setting.threads, strict=setting.strict)


def open_smoothed_classifier(bundle: Bundle, setting: Setting, num_samples: int, seed: int) -> SmoothedClassifier:
    """Open the classifier as a robot opens it, but for the seeded noise and a policy that accepts every frame."""
    return open_classifier(
        bundle,
        setting.engine,
        precision=setting.precision,
        num_samples=num_samples,
        policy=_accept_all(bundle, num_samples),
        noise=SeededNoise(seed),
        threads=setting.threads,
        strict=setting.strict,
    )


def open_smoothed(bundle: Bundle, setting: Setting, num_samples: int, seed: int) -> Arm:
    """Open the classifier as an arm."""
    classifier = open_smoothed_classifier(bundle, setting, num_samples, seed)
    return Arm(smoothed_name(num_samples), num_samples, classifier.classify, classifier.close)


def _accept_all(bundle: Bundle, num_samples: int) -> SmoothingPolicy:
    """Return a policy without a threshold: what a frame costs does not depend on it, so no calibration is asked for."""
    return SmoothingPolicy(num_samples, bundle.noise_scale, 0, min_confidence=0.0 if bundle.has_gate else None)


def check_answer(answer: object) -> None:
    """Refuse to time frames that are not answered.

    Raises:
        InferenceError: if the answer is a list of decisions with one that is not accepted.
    """
    for decision in answer if isinstance(answer, list) else ():
        if decision.status is not Status.ACCEPTED:
            raise InferenceError(
                f"a frame of the benchmark was not answered: {decision.status} {decision.reason}".rstrip(),
                "run `flss-edge verify` on this bundle and export it again",
            )


@dataclass(frozen=True)
class ImagePool:
    """Host images that frames are drawn from.

    Attributes:
        images: contiguous (H, W, 3) uint8 arrays.
        source: file of the bundle they come from.
        real: whether they are photographs of the data set, None where the bundle does not say.
    """

    images: tuple[NDArray[np.uint8], ...]
    source: str
    real: bool | None

    def order(self, seed: int, length: int = 4096) -> list[int]:
        """Return indices drawn with replacement; every arm walks through the same ones."""
        return [int(index) for index in np.random.default_rng(seed).integers(len(self.images), size=length)]


def load_images(bundle: Bundle) -> ImagePool:
    """Take the reference images of a bundle, or its few golden ones where it has no reference."""
    reference = read_reference(bundle)
    images = reference.images if reference else read_golden(bundle).images
    frames = tuple(np.ascontiguousarray(image) for image in images)
    return ImagePool(frames, REFERENCE_NAME if reference else GOLDEN_NAME, real=reference.real if reference else None)


class StageClock:
    """Adds up the time that one frame spends in each named stage."""

    def __init__(self) -> None:
        """Start with no stage seen."""
        self.spans: list[tuple[str, int, int]] = []  # (stage, start, end) of the frame in work, nanoseconds

    def timed(self, stage: str, call: Callable[[], Result]) -> Result:
        """Run `call` and record its span."""
        start = time.perf_counter_ns()
        result = call()
        self.spans.append((stage, start, time.perf_counter_ns()))
        return result

    def frame(self, run: Callable[[], object]) -> dict[str, float]:
        """Time one frame and split it.

        Returns:
            Milliseconds of each recorded stage, of `preprocess` (before the first of them), `decide` (after the last),
            `between` (what lies between them) and `total`.
        """
        self.spans.clear()
        start = time.perf_counter_ns()
        run()
        end = time.perf_counter_ns()
        stages: dict[str, float] = {}
        for stage, opened, closed in self.spans:
            stages[stage] = stages.get(stage, 0.0) + (closed - opened) / 1e6
        inside = sum(stages.values())
        total, before, after = (end - start) / 1e6, (self.spans[0][1] - start) / 1e6, (end - self.spans[-1][2]) / 1e6
        between = total - before - after - inside
        return {"preprocess": before, **stages, "between": between, "decide": after, "total": total}


class TimedEngine:
    """An engine whose runs are recorded as one stage."""

    def __init__(self, engine: Engine, stage: str, clock: StageClock) -> None:
        """Wrap an open engine."""
        self._engine, self._stage, self._clock = engine, stage, clock

    @property
    def name(self) -> str:
        """Name of the wrapped engine."""
        return self._engine.name

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Inputs of the wrapped engine."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Outputs of the wrapped engine."""
        return self._engine.outputs

    @property
    def library(self) -> str:
        """Library of the wrapped engine."""
        return self._engine.library

    @property
    def device(self) -> str:
        """Device of the wrapped engine."""
        return self._engine.device

    def precision(self) -> str:
        """Read back the precision of the wrapped engine."""
        return self._engine.precision()

    def run(self, tensors: Tensors) -> Tensors:
        """Run the wrapped engine and record how long it took."""
        return self._clock.timed(self._stage, lambda: self._engine.run(tensors))

    def close(self) -> None:
        """Close the wrapped engine."""
        self._engine.close()

    def __enter__(self) -> TimedEngine:
        """Return the engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()


class TimedNoise:
    """A noise source whose windows are recorded as one stage."""

    def __init__(self, noise: NoiseSource, clock: StageClock) -> None:
        """Wrap a noise source."""
        self._noise, self._clock = noise, clock

    @property
    def counter(self) -> int:
        """Counter of the next image."""
        return self._noise.counter

    def take(self, batch: int, num_samples: int, latent_dim: int) -> NDArray[np.float32]:
        """Take from the wrapped source and record how long it took."""
        return self._clock.timed("noise", lambda: self._noise.take(batch, num_samples, latent_dim))


def staged_deterministic(bundle: Bundle, setting: Setting, clock: StageClock) -> Arm:
    """Open the baseline with its engine timed."""
    graph = TimedEngine(_open_baseline(bundle, setting), "network", clock)
    return Arm(DETERMINISTIC, None, deterministic_frame(graph, bundle.input), graph.close)


def runs_as_pair(engines: BundleEngines) -> bool:
    """Tell whether a frame takes encoder and head as one; a cascade's never does, because it needs the mean between."""
    return engines.gate is None and hasattr(engines.encoder, "join")


def staged_smoothed(bundle: Bundle, setting: Setting, num_samples: int, seed: int, clock: StageClock) -> Arm | None:
    """Open a classifier whose engines and noise are timed, otherwise wired as `open_classifier` does.

    Returns:
        The arm; None where encoder and head run as one, because then there are no stages between them to be timed.
    """
    options: dict[str, Any] = {"precision": setting.precision, "threads": setting.threads, "strict": setting.strict}
    engines = open_bundle_engines(bundle, setting.engine, **options)
    if runs_as_pair(engines):
        engines.close()
        return None
    classifier = SmoothedClassifier(
        TimedEngine(engines.encoder, "encoder", clock),
        TimedEngine(engines.head, "head", clock),
        TimedNoise(SeededNoise(seed), clock),
        _accept_all(bundle, num_samples),
        bundle.input,
        bundle.class_names,
        None if engines.gate is None else TimedEngine(engines.gate, "gate", clock),
    )
    return Arm(smoothed_name(num_samples), num_samples, classifier.classify, classifier.close)

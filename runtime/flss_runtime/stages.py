"""Where a frame's time goes: the same arms with timed parts, in a run of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arm_names import ArmName, parse_arm
from flss_runtime.arms import Answer, Arm, Setting, accept_all, open_baseline, plain_answer
from flss_runtime.bundle import Bundle
from flss_runtime.bundle_engines import BundleEngines, open_bundle_engines
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import IntArray
from flss_runtime.engines import Engine, Tensors, TensorSpec
from flss_runtime.engines.resident import Resident, bind
from flss_runtime.image_pool import ImagePool
from flss_runtime.images import FloatArray, InputSpec, fit_image
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource, SeededNoise
from flss_runtime.samplers import Sampler, make_sampler
from flss_runtime.sampling import LATENT
from flss_runtime.visits import palindrome

RESIZE, SAMPLE = "resize", "sample"
Result = TypeVar("Result")


class StageClock:
    """Adds up the time that one frame spends in each named stage."""

    def __init__(self) -> None:
        """Start with no stage seen."""
        self.spans: list[tuple[str, int, int]] = []  # (stage, start, end) of the frame in work, nanoseconds

    def timed(self, stage: str, call: Callable[[], Result]) -> Result:
        """Run `call` and record its span; spans may lie within `sample`, not within each other."""
        start = time.perf_counter_ns()
        result = call()
        self.spans.append((stage, start, time.perf_counter_ns()))
        return result

    def frame(self, run: Callable[[], object]) -> dict[str, float]:
        """Time one frame and split it.

        Returns:
            Milliseconds of each recorded stage but `sample`, of `preprocess` (before the first of them but `resize`),
            `decide` (after the last), `between` (what lies between, with NumPy's part in the sampling) and `total`.
        """
        self.spans.clear()
        start = time.perf_counter_ns()
        run()
        end = time.perf_counter_ns()
        stages: dict[str, float] = {}
        for stage, opened, closed in self.spans:
            stages[stage] = stages.get(stage, 0.0) + (closed - opened) / 1e6
        stages.pop(SAMPLE, None)
        resize = {RESIZE: stages.pop(RESIZE)} if RESIZE in stages else {}
        begin = min(opened for stage, opened, _ in self.spans if stage != RESIZE)
        finish = max(closed for _, _, closed in self.spans)
        total, after = (end - start) / 1e6, (end - finish) / 1e6
        before = (begin - start) / 1e6 - sum(resize.values())
        between = total - before - after - sum(stages.values()) - sum(resize.values())
        return {**resize, "preprocess": before, **stages, "between": between, "decide": after, "total": total}


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

    def resident(self, inputs: Tensors) -> Resident:
        """Bind the wrapped engine, so that its bound runs are recorded too."""
        return TimedResident(bind(self._engine, inputs), self._stage, self._clock)

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


class TimedResident:
    """A bound graph whose runs are recorded as one stage."""

    def __init__(self, resident: Resident, stage: str, clock: StageClock) -> None:
        """Wrap a bound graph."""
        self.inputs, self.outputs = resident.inputs, resident.outputs
        self._resident, self._stage, self._clock = resident, stage, clock
        self.point = getattr(resident, "point", None)  # an engine may have none

    def run(self) -> None:
        """Run the graph and record how long it took."""
        self._clock.timed(self._stage, self._resident.run)


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


class TimedSampler:
    """A sampler whose whole work on a frame is recorded, so that what follows it is told apart."""

    def __init__(self, sampler: Sampler, clock: StageClock) -> None:
        """Wrap a sampler."""
        self.sampling, self.engines, self.noise_dim = sampler.sampling, sampler.engines, sampler.noise_dim
        self._sampler, self._clock = sampler, clock

    @property
    def frame(self) -> FloatArray | None:
        """The wrapped sampler's."""
        return self._sampler.frame

    @frame.setter
    def frame(self, array: FloatArray | None) -> None:
        self._sampler.frame = array

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        """Sample with the wrapped one and record how long it took."""
        return self._clock.timed(SAMPLE, lambda: self._sampler.sample(images, noise, num_samples, noise_scale))

    def sample_with_mean(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Sample with the wrapped one; a gate runs after it, so its end is not that of the frame."""
        return self._sampler.sample_with_mean(images, noise, num_samples, noise_scale)

    def mean_choices(self, images: FloatArray) -> IntArray:
        """Ask the wrapped sampler."""
        return self._sampler.mean_choices(images)

    def encode(self, images: FloatArray) -> LatentGaussian:
        """Ask the wrapped sampler."""
        return self._sampler.encode(images)

    def close(self) -> None:
        """Close the wrapped sampler."""
        self._sampler.close()


def stage_table(
    bundle: Bundle, names: Sequence[str], setting: Setting, seed: int, pool: ImagePool, frames: int
) -> dict[str, dict[str, float]]:
    """Split a frame of each arm into stages, the arms taking turns: what drifts meanwhile hits all alike.

    Returns:
        Arm name -> stage -> median milliseconds; without arms whose frame cannot be split.
    """
    order = pool.order(seed)
    with ExitStack() as stack:
        opened: dict[str, tuple[Arm, StageClock]] = {}
        for name in names:
            clock = StageClock()
            if (arm := open_staged(bundle, name, setting, seed, clock)) is not None:
                stack.callback(arm.close)
                opened[name] = arm, clock
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
        for index in range(frames + frames // 4):
            image = pool.images[order[index % len(order)]]
            for name in palindrome(list(opened), index)[: len(opened)]:
                arm, clock = opened[name]
                arm.frame(image)  # finds the other arm's weights in the caches
                rows[name].append(clock.frame(lambda image=image, arm=arm: arm.frame(image)))  # type: ignore[misc]
    kept = {name: found[frames // 4 :] for name, found in rows.items()}  # the first fifth warms up
    return {name: medians_of(found) for name, found in kept.items()}


def medians_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each key of the rows, which have the same keys."""
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def open_staged(bundle: Bundle, name: str, setting: Setting, seed: int, clock: StageClock) -> Arm | None:
    """Open an arm with its parts timed, otherwise wired as `open_classifier` does.

    Returns:
        The arm; None where encoder and head run as one on a device, because then there is nothing between to be timed.
    """
    wanted = parse_arm(name)
    if wanted.sampling is None:
        graph = TimedEngine(open_baseline(bundle, setting), "network", clock)
        answer = plain_answer(graph, bundle.input)
        return Arm(name, _timed_resize(answer, bundle.input, setting, clock), answer, graph.close)
    engines = _open_engines(bundle, wanted, setting)
    if runs_as_pair(engines):
        engines.close()
        return None
    timed = {role: TimedEngine(engine, role, clock) for role, engine in engines.engines.items()}
    classifier = SmoothedClassifier(
        TimedSampler(make_sampler(timed, wanted.sampling, bundle.latent_dim, bundle.num_classes), clock),
        TimedNoise(SeededNoise(seed), clock),
        accept_all(bundle, wanted.num_samples or 0),
        bundle.input,
        bundle.class_names,
        timed.get("gate"),
    )
    frame = _timed_resize(classifier.classify, bundle.input, setting, clock)
    return Arm(name, frame, classifier.classify, classifier.close)


def _open_engines(bundle: Bundle, wanted: ArmName, setting: Setting) -> BundleEngines:
    return open_bundle_engines(
        bundle,
        setting.engine,
        precision=setting.precision,
        sampling=wanted.sampling or LATENT,
        fused=wanted.fused,
        threads=setting.threads,
        strict=setting.strict,
    )


def runs_as_pair(engines: BundleEngines) -> bool:
    """Tell whether a frame takes encoder and head as one; a cascade's never does, because it needs the mean between."""
    return "gate" not in engines.engines and hasattr(engines.engines.get("encoder"), "join")


def _timed_resize(answer: Answer, spec: InputSpec, setting: Setting, clock: StageClock) -> Answer:
    if setting.camera is None:
        return answer
    return lambda frame: answer(clock.timed(RESIZE, lambda: fit_image(frame, spec)))

"""The things a benchmark compares: each takes one host image to one answer, and owns the engines it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arm_names import BASELINE, ArmName, parse_arm
from flss_runtime.bundle import Bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy, Status
from flss_runtime.engines import Engine, open_engine
from flss_runtime.engines.resident import bind
from flss_runtime.errors import InferenceError
from flss_runtime.images import InputSpec, fit_image, to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

Image = NDArray[np.uint8]
Answer = Callable[[Image], object]


@dataclass(frozen=True)
class Arm:
    """One contender of the benchmark.

    Attributes:
        name: as of `arm_names`.
        frame: takes one host image to its answer; this call is what is timed. The image is (H, W, 3) uint8 of the
            encoder's size, or a camera frame where the setting says so.
        batch: the same for (B, H, W, 3) uint8 of the encoder's size.
        close: frees the engines.
    """

    name: str
    frame: Answer
    batch: Answer
    close: Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What all arms have in common.

    Attributes:
        engine: as for `open_engine`.
        precision: of the network.
        threads: of all but the head.
        strict: as for `open_engine`.
        camera: width and height of the camera frames that every frame begins at; None begins at the encoder's size.
    """

    engine: str
    precision: str
    threads: int | None
    strict: bool = True
    camera: tuple[int, int] | None = None


def open_arm(bundle: Bundle, name: str, setting: Setting, seed: int) -> Arm:
    """Open an arm by its name.

    Raises:
        UsageError: there is no such arm.
        BundleError: the bundle lacks a graph that it needs.
        EngineUnavailable: as for `open_classifier`.
    """
    wanted = parse_arm(name)
    if wanted.sampling is None:
        graph = open_baseline(bundle, setting)
        answer = plain_answer(graph, bundle.input)
        return Arm(name, from_camera(answer, bundle.input, setting), answer, graph.close)
    classifier = open_smoothed_classifier(bundle, wanted, setting, seed)
    frame = from_camera(classifier.classify, bundle.input, setting)
    return Arm(name, frame, classifier.classify, classifier.close)


def open_baseline(bundle: Bundle, setting: Setting) -> Engine:
    """Open the same network without std head and without sampling."""
    graph = bundle.graph(BASELINE, setting.precision)
    return open_engine(graph, setting.engine, threads=setting.threads, strict=setting.strict)


def plain_answer(graph: Engine, spec: InputSpec) -> Answer:
    """Return the loop body a careful user of a plain classifier would write, with its arrays bound as ours are."""
    (name,) = graph.inputs
    pixels = np.zeros((1, 3, spec.height, spec.width), np.float32)
    resident = bind(graph, {name: pixels})
    choice = resident.outputs["choice"]

    def answer(images: Image) -> NDArray[Any] | int:
        if images.ndim == 4:
            chosen: NDArray[Any] = graph.run({name: to_nchw(images)})["choice"]
            return chosen
        to_nchw(images[None], pixels)
        resident.run()
        return int(choice[0])

    return answer


def open_smoothed_classifier(bundle: Bundle, arm: ArmName, setting: Setting, seed: int) -> SmoothedClassifier:
    """Open the classifier as a robot opens it, but for the seeded noise and a policy that accepts every frame."""
    assert arm.num_samples is not None and arm.sampling is not None
    return open_classifier(
        bundle,
        setting.engine,
        precision=setting.precision,
        sampling=arm.sampling,
        fused=arm.fused,
        num_samples=arm.num_samples,
        policy=accept_all(bundle, arm.num_samples),
        noise=SeededNoise(seed),
        threads=setting.threads,
        strict=setting.strict,
    )


def from_camera(answer: Answer, spec: InputSpec, setting: Setting) -> Answer:
    """Return the same answer, to a camera frame where the setting says so."""
    if setting.camera is None:
        return answer
    return lambda frame: answer(fit_image(frame, spec))


def accept_all(bundle: Bundle, num_samples: int) -> SmoothingPolicy:
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

"""Every frame of a recording through a classifier, in order and with nobody waiting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import Decision, Status, unanswered
from flss_runtime.errors import DataError, InferenceError
from flss_runtime.images import fit_image
from flss_runtime.noise import KeyedNoise
from flss_runtime.replay.bags import BagFrame
from flss_runtime.stream.results import Origin, StreamResult, Timing
from flss_runtime.stream.temporal import TemporalVote

_WARM_UP = 3  # runs


def replay(
    frames: Iterable[BagFrame],
    classifier: SmoothedClassifier,
    origin: Origin,
    *,
    steady: TemporalVote | None = None,
) -> Iterator[tuple[BagFrame, StreamResult]]:
    """Decide for each frame, one after the other: no deadline, none left out.

    The noise follows from the classifier's source alone, so that the same frames with the same `SeededNoise` get the
    same votes.

    Args:
        frames: As `open_frames` gives them.
        classifier: What decides.
        origin: What to write down about it.
        steady: A vote over the last frames, by when they were recorded.

    Yields:
        Each frame with its result. One that cannot be read is `invalid_input`, and one that the engine fails on is a
        `fault`; the next one is tried all the same.
    """
    _warm_up(classifier)
    for number, frame in enumerate(frames):
        begun = time.monotonic_ns()
        decision, fitted, decided = _decide(frame, classifier)
        voted = decision.top_label is not None
        yield (
            frame,
            StreamResult(
                frame=number,
                stamp=frame.stamp_ns,
                source=None,
                decision=decision,
                steady=None if steady is None else steady.update(decision, frame.log_time_ns),
                num_samples=classifier.policy.num_samples if voted else 0,
                timing=Timing(begun, begun, fitted, decided, time.monotonic_ns()),
                origin=origin,
            ),
        )


def _warm_up(classifier: SmoothedClassifier) -> None:
    """Let a grey frame pay for what the first run allocates, and leave the noise where it was."""
    noise = classifier.noise
    start = noise.counter
    grey = np.full((classifier.input.height, classifier.input.width, 3), 128, np.uint8)
    with suppress(InferenceError):  # it is the frames that count
        for _ in range(_WARM_UP):
            classifier.classify(grey)
    if isinstance(noise, KeyedNoise):
        noise.counter = start


def _decide(frame: BagFrame, classifier: SmoothedClassifier) -> tuple[Decision, int | None, int | None]:
    """Return the decision and when the frame had its size and its decision, None where it never had."""
    if frame.image is None:
        return unanswered(Status.INVALID_INPUT, frame.error), None, None
    try:
        image = fit_image(frame.image, classifier.input)
    except DataError as error:
        return unanswered(Status.INVALID_INPUT, f"{error.problem}; {error.fix}"), None, None
    fitted = time.monotonic_ns()
    try:
        decision = classifier.classify(image)[0]
    except InferenceError as error:
        return unanswered(Status.FAULT, f"{error.problem}; {error.fix}"), fitted, None
    return decision, fitted, time.monotonic_ns()

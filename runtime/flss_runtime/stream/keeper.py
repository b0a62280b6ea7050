"""Keeps a classifier ready: opens it, warms it up, has frames decided, and lets go of it when it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from flss_runtime.classifier import SmoothedClassifier, check_policy
from flss_runtime.decision import Decision, SmoothingPolicy, Status, unanswered
from flss_runtime.engines import one_line
from flss_runtime.errors import DataError, FLSSError, UsageError
from flss_runtime.images import fit_image
from flss_runtime.stream.budget import SampleBudget
from flss_runtime.stream.frame import Frame
from flss_runtime.stream.results import Origin

_log = logging.getLogger("flss_runtime")

_WARM_UP = 3  # the first run of a size allocates, and a device compiles or records
_TIMED = 3  # and so many tell what a frame takes


class Keeper:
    """Owns the classifier; used by the worker's thread alone.

    Args:
        open: Opens one, verified.
        origin: What its decisions are said to come from; the engine is read from the classifier itself.
        reduced: For frames without time for all samples; None: all samples always.
    """

    def __init__(self, open: Callable[[], SmoothedClassifier], origin: Origin, reduced: SmoothingPolicy | None) -> None:
        self._open = open
        self._reduced = reduced
        self._classifier: SmoothedClassifier | None = None
        self._policy = SmoothingPolicy()
        self._budget = SampleBudget(self._policy, None, 0, 0)
        self._device: dict[str, str] = {}
        self.origin = origin
        self.class_names: tuple[str, ...] = ()

    def open(self) -> None:
        """Open a classifier and run it until it is warm; its noise source counts these runs.

        Raises:
            UsageError: The reduced policy does not go with it.
            FLSSError: It cannot be opened, or failed.
        """
        classifier = self._open()
        try:
            self._policy = classifier.policy
            check_reduced(self._reduced, classifier)
            times = [_warm_up(classifier, policy) for policy in (self._policy, self._reduced) if policy is not None]
        except BaseException:
            _close(classifier)
            raise
        self._budget = SampleBudget(self._policy, self._reduced, times[0], times[-1])
        if self.origin.engine != classifier.name:  # "auto", or a device that is missing and need not be there
            self.origin = replace(self.origin, engine=classifier.name)
        engine = next(iter(classifier.sampler.engines.values()))
        self._device = {"library": engine.library, "device": engine.device}
        self.class_names = classifier.class_names
        self._classifier = classifier

    def decide(self, frame: Frame) -> Decision:
        """Decide a frame, and note in it how far it came.

        Raises:
            Exception: The classifier failed, with whatever error; `drop` it then.
        """
        classifier, pixels = self._classifier, frame.pixels
        assert classifier is not None and pixels is not None
        if pixels.dtype == np.uint8:
            try:
                pixels = fit_image(pixels, classifier.input)
            except DataError as error:
                return unanswered(Status.INVALID_INPUT, error.problem)
        frame.fitted = start = time.monotonic_ns()
        classifier.policy = policy = self._budget.choose(frame.deadline - start)
        (decision,) = classifier.classify(pixels)
        frame.decided = end = time.monotonic_ns()
        if decision.top_label is not None:
            frame.num_samples = policy.num_samples
            self._budget.took(policy, end - start)
        return decision

    def drop(self) -> None:
        """Close the classifier, if there is one; what goes wrong with that is logged."""
        classifier, self._classifier = self._classifier, None
        if classifier is not None:
            _close(classifier)

    def facts(self) -> dict[str, Any]:
        """Give what decides as JSON values."""
        from flss_runtime.environment import version_of

        return {
            "origin": asdict(self.origin),
            "class_names": list(self.class_names),
            "policy": asdict(self._policy),
            "reduced": None if self._reduced is None else asdict(self._reduced),
            **self._device,
            "flss_edge": version_of("flss-edge"),
            "numpy": np.__version__,
        }


def check_reduced(reduced: SmoothingPolicy | None, classifier: SmoothedClassifier) -> None:
    """Refuse a policy that frames without time for all samples cannot be decided by.

    Raises:
        UsageError: It is for as many samples or more, for another noise scale, or does not go with the gate.
    """
    if reduced is None:
        return
    check_policy(reduced, classifier.gate is not None)
    full = classifier.policy
    if reduced.num_samples >= full.num_samples or reduced.noise_scale != full.noise_scale:
        raise UsageError(
            f"the reduced policy has N = {reduced.num_samples} at noise scale {reduced.noise_scale}, the classifier "
            f"N = {full.num_samples} at {full.noise_scale}",
            "pass a policy for fewer samples at the same noise scale: bundle.policy(N)",
        )


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong."""
    return error.problem if isinstance(error, FLSSError) else f"{type(error).__name__}: {one_line(error)}"


def _warm_up(classifier: SmoothedClassifier, policy: SmoothingPolicy) -> int:
    """Run a grey frame until it is warm, and return what it takes in nanoseconds."""
    spec = classifier.input
    grey = np.full((spec.height, spec.width, 3), 127, np.uint8)
    fit_image(np.full((spec.height + 1, spec.width + 1, 3), 127, np.uint8), spec)  # imports what resizes
    classifier.policy = policy
    times = []
    for _ in range(_WARM_UP + _TIMED):
        start = time.monotonic_ns()
        classifier.classify(grey)
        times.append(time.monotonic_ns() - start)
    return sorted(times[_WARM_UP:])[_TIMED // 2]


def _close(classifier: SmoothedClassifier) -> None:
    try:
        classifier.close()
    except BaseException:  # it had failed before: there is nothing more to do about it
        _log.warning("the engine could not be closed", exc_info=True)

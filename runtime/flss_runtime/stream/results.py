"""What a stream says about a frame: the decision, when each stage was reached, and what it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flss_runtime.decision import Decision


@dataclass(frozen=True, slots=True)
class Timing:
    """When a frame reached each stage, in nanoseconds of `time.monotonic_ns`; None where it never did.

    Attributes:
        submitted: The call of `submit` began; deadlines count from here.
        started: Its turn came.
        fitted: It had the size that the encoder takes.
        decided: The classifier had decided.
        delivered: The callback was called.
    """

    submitted: int
    started: int | None = None
    fitted: int | None = None
    decided: int | None = None
    delivered: int | None = None

    def stages_ms(self) -> dict[str, float | None]:
        """Give the time between the stages in milliseconds, None where one of the two was not reached.

        Returns:
            "wait" for its turn, "fit" to size, "classify", "deliver" the decision, and "total" from submission to
            delivery.
        """
        return {
            "wait": _between(self.submitted, self.started),
            "fit": _between(self.started, self.fitted),
            "classify": _between(self.fitted, self.decided),
            "deliver": _between(self.decided, self.delivered),
            "total": _between(self.submitted, self.delivered),
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """What decides: with it, the key of the noise and the counter of a decision, that decision can be repeated.

    Attributes:
        engine: As `Engine.name`, such as "ort" or "trt".
        precision: "fp32", "fp16" or "int8".
        sampling: "latent", "logit" or "deterministic".
        bundle: Name of the bundle's directory.
        bundle_sha256: Digest of its manifest, as `Bundle.digest`.
        noise_scale: Factor on the standard deviation.
    """

    engine: str
    precision: str
    sampling: str
    bundle: str
    bundle_sha256: str
    noise_scale: float


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The one result of a submitted frame.

    Attributes:
        frame: Number of the submission, from 0.
        stamp: The source's own time of the frame in nanoseconds, as it was submitted; None where it gave none.
        source: What was submitted beside the frame, such as a message's header; the stream never looks at it.
        decision: The answer, or why there is none.
        steady: The class that the temporal vote agrees on with this frame counted; None without such a vote, and where
            it does not agree.
        num_samples: Latent samples that voted on this frame; 0 where nothing voted.
        timing: When it reached each stage.
        origin: What decided.
    """

    frame: int
    stamp: int | None
    source: object
    decision: Decision
    steady: int | None
    num_samples: int
    timing: Timing
    origin: Origin

    def to_json(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """Give the flat record of this frame as JSON values; `source` is not part of it.

        Args:
            class_names: Names of the K classes, to be recorded beside the label.

        Returns:
            One key a field; the stages as "wait_ms" and so on; "class_name" only where names were given.
        """
        decision, origin = self.decision, self.origin
        named = {} if not class_names else {"class_name": _name(decision.label, class_names)}
        return {
            "frame": self.frame,
            "stamp": self.stamp,
            "status": decision.status.value,
            "label": decision.label,
            **named,
            "top_label": decision.top_label,
            "votes": decision.votes,
            "vote_share": decision.vote_share,
            "num_samples": self.num_samples,
            "counter": decision.counter,
            "gated": decision.gated,
            "reason": decision.reason,
            "steady": self.steady,
            **{f"{stage}_ms": took for stage, took in self.timing.stages_ms().items()},
            "engine": origin.engine,
            "precision": origin.precision,
            "sampling": origin.sampling,
            "bundle_sha256": origin.bundle_sha256,
        }


def _between(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1e6


def _name(label: int | None, class_names: Sequence[str]) -> str | None:
    return None if label is None else class_names[label]

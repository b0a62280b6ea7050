"""How a stream fares: what a watchdog asks, and what stands in a robot's diagnostics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from flss_runtime.decision import Status

if TYPE_CHECKING:
    from flss_runtime.stream.delivery import Delivery
    from flss_runtime.stream.mailbox import Mailbox


class StreamState(str, Enum):
    """Whether a stream can answer: `stalled` is one whose engine or callback does not come back."""

    RUNNING = "running"
    FAULTED = "faulted"
    STALLED = "stalled"
    CLOSED = "closed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """A stream at one moment; ages and times in seconds, None where it never happened.

    Attributes:
        state: Whether it can answer.
        reason: For people: why it cannot, otherwise empty.
        submitted: Frames that were submitted.
        pending: Those of them for whose result the callback has not been called, or has not returned.
        results: Status -> results delivered with it.
        frame_age_s: Since the last frame was submitted.
        result_age_s: Since the last result.
        answer_age_s: Since the last frame was accepted, or rejected by its vote.
        busy_s: For how long the engine has been running the frame that it runs; None: it runs none.
        deadline_streak: Deadlines missed since the last answer.
        late: Answers that came after their deadline and were dropped.
        restarts: How often the engine was opened again.
        next_try_s: Until it is opened again; 0 while it is being opened, None where there is no need.
        callback_errors: Exceptions of the callback.
        callback_max_ms: The longest call of the callback, in milliseconds.
        record_lost: Frames that could not be recorded.
    """

    state: StreamState
    reason: str
    submitted: int
    pending: int
    results: Mapping[Status, int]
    frame_age_s: float | None
    result_age_s: float | None
    answer_age_s: float | None
    busy_s: float | None
    deadline_streak: int
    late: int
    restarts: int
    next_try_s: float | None
    callback_errors: int
    callback_max_ms: float
    record_lost: int

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **fields,
            "state": self.state.value,
            "results": {status.value: count for status, count in self.results.items()},
        }


def examine(mailbox: Mailbox, delivery: Delivery, stall_s: float, *, restarts: int, record_lost: int) -> StreamHealth:
    """Read how a stream fares, without waiting for its engine or its callback.

    Args:
        mailbox: Its frames.
        delivery: Its results.
        stall_s: How long the engine may run one frame, and the callback one result.
        restarts: As in `StreamHealth`.
        record_lost: As there.
    """
    closed, outage, running = mailbox.look()
    now = time.monotonic_ns()
    busy_s, callback_s = _since(running, now), _since(delivery.since, now)
    state, reason = StreamState.RUNNING, ""
    if closed:
        state = StreamState.CLOSED
    elif callback_s is not None and callback_s > stall_s:
        state, reason = StreamState.STALLED, f"the callback has been running for {callback_s:.1f} s"
    elif outage is not None:
        state, reason = StreamState.FAULTED, outage.reason
    elif busy_s is not None and busy_s > stall_s:
        state, reason = StreamState.STALLED, f"the engine has been running a frame for {busy_s:.1f} s"
    delivered = delivery.delivered
    submitted = mailbox.submitted  # read second: none is delivered before it was submitted
    return StreamHealth(
        state=state,
        reason=reason,
        submitted=submitted,
        pending=submitted - delivered,
        results=dict(delivery.counts),
        frame_age_s=_since(mailbox.last_submitted, now),
        result_age_s=_since(delivery.last, now),
        answer_age_s=_since(delivery.last_answer, now),
        busy_s=busy_s,
        deadline_streak=delivery.deadline_streak,
        late=mailbox.late,
        restarts=restarts,
        next_try_s=None if outage is None else max(0.0, (outage.next_try - now) / 1e9),
        callback_errors=delivery.callback_errors,
        callback_max_ms=delivery.callback_max_ns / 1e6,
        record_lost=record_lost,
    )


def _since(then: int | None, now: int) -> float | None:
    return None if then is None else max(0, now - then) / 1e9

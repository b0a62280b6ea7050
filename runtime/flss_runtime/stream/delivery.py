"""Hands results over: one at a time, in the stream's own threads, whatever the callback does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from flss_runtime.decision import Status
from flss_runtime.errors import UsageError
from flss_runtime.stream.frame import Frame
from flss_runtime.stream.record import FrameRecorder
from flss_runtime.stream.results import Origin, StreamResult, Timing
from flss_runtime.stream.temporal import TemporalVote

_log = logging.getLogger("flss_runtime")


class Delivery:
    """Makes the results of settled frames and calls back with them.

    Its lock is held while the callback runs, so that there is one call at a time; the mailbox's is not. So the callback
    may submit frames and ask for the stream's health, and `health` answers even where the callback hangs.

    Args:
        on_result: Called with each result.
        steady: The vote over frames; None: no such vote.
        record: Where each result is written; None: nowhere.
    """

    def __init__(
        self, on_result: Callable[[StreamResult], None], steady: TemporalVote | None, record: FrameRecorder | None
    ) -> None:
        self._lock = threading.Lock()
        self._on_result = on_result
        self._steady = steady
        self._record = record
        self._logged: set[type[BaseException]] = set()
        self._thread: int | None = None  # that is in the callback
        self.since: int | None = None  # when that was called
        self.counts = dict.fromkeys(Status, 0)
        self.delivered = 0  # callback and record are done with it
        self.last: int | None = None
        self.last_answer: int | None = None
        self.deadline_streak = 0
        self.callback_errors = 0
        self.callback_max_ns = 0

    def deliver(self, frame: Frame, origin: Origin) -> None:
        """Call back with the result of a settled frame, and hand it to whoever waits for it; nothing is raised."""
        with self._lock:
            if frame.delivered:
                return
            frame.delivered = True
            result = self._result(frame, origin)
            self._count(result)
            self._call(result)
            if self._record is not None:
                self._record.write(result)
            self.delivered += 1
        if frame.box is not None:
            frame.box.put(result)

    def refuse_callback(self) -> None:
        """Refuse a wait for a result in the callback.

        Raises:
            UsageError: This thread is in the callback, so that no other result can be delivered.
        """
        if self._thread == threading.get_ident():
            raise UsageError(
                "classify() was called in on_result, where no other result can arrive", "call submit() there"
            )

    def _result(self, frame: Frame, origin: Origin) -> StreamResult:
        decision = frame.decision
        assert decision is not None
        now = time.monotonic_ns()
        steady = None if self._steady is None else self._steady.update(decision, frame.submitted)
        answered = decision.top_label is not None
        decided, num_samples = (frame.decided, frame.num_samples) if answered else (None, 0)
        timing = Timing(frame.submitted, frame.started, frame.fitted, decided, now)
        return StreamResult(frame.number, frame.stamp, frame.source, decision, steady, num_samples, timing, origin)

    def _count(self, result: StreamResult) -> None:
        status = result.decision.status
        self.counts[status] += 1
        self.last = result.timing.delivered
        if status is Status.DEADLINE:
            self.deadline_streak += 1
        elif status in (Status.ACCEPTED, Status.LOW_VOTE):
            self.deadline_streak = 0
            self.last_answer = self.last

    def _call(self, result: StreamResult) -> None:
        start = time.monotonic_ns()
        self._thread, self.since = threading.get_ident(), start
        try:
            self._on_result(result)
        except BaseException as error:  # also sys.exit(), which would end a thread that others rely on
            self.callback_errors += 1
            if type(error) not in self._logged:  # once a kind: at 30 frames a second it would fill the disk
                self._logged.add(type(error))
                _log.exception("the callback failed on frame %d; the stream goes on", result.frame)
        finally:
            self._thread = self.since = None
            self.callback_max_ns = max(self.callback_max_ns, time.monotonic_ns() - start)

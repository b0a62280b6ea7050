"""The classifier as a robot needs it: frames from any thread, and one result for each, in time, whatever happens."""

from __future__ import annotations

import atexit
import logging
import math
import operator
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy, Status, unanswered
from flss_runtime.errors import DataError, FLSSError, UsageError
from flss_runtime.stream.backoff import Backoff
from flss_runtime.stream.buffers import FrameBuffers
from flss_runtime.stream.delivery import Delivery
from flss_runtime.stream.frame import NEVER, Frame
from flss_runtime.stream.health import StreamHealth, examine
from flss_runtime.stream.keeper import Keeper, reason_of
from flss_runtime.stream.mailbox import Mailbox, Outage
from flss_runtime.stream.record import FrameRecorder
from flss_runtime.stream.results import Origin, StreamResult
from flss_runtime.stream.temporal import TemporalVote
from flss_runtime.stream.waiting import wait_until

_log = logging.getLogger("flss_runtime")

BACKOFF = Backoff(0.1, 5.0)
_LONGEST_S = 86_400.0


class StreamClassifier:
    """Classifies the newest frame, and gives each submitted one exactly one result.

    Two threads of its own: the worker runs the classifier, the clock delivers on time what the worker does not. A frame
    that waits when a newer one comes is `superseded`; one that is not decided by its deadline is `deadline`, at the
    deadline, also while an engine hangs; its late answer is dropped. A frame on which the engine fails is `fault`, and
    so is what comes until the engine was opened again.

    The callback is called in one of the two threads, one call at a time, in the order in which results are known. It
    has to be quick: while it runs, no other result is delivered. Its exceptions are logged and counted. It may call
    `submit`, `health` and `close`.

    An open stream keeps its threads and engines until `close`, or the end of the process. A forked child has no stream.

    Args:
        open: Opens the classifier, verified; called again after a fault, in the worker's thread.
        on_result: The callback.
        origin: What decides, for the results; its engine is replaced by the one that was opened.
        deadline_s: From submission to result, in seconds, > 0; None: a frame may take as long as it takes.
        reduced: Policy with fewer samples, of `Bundle.policy`, for a frame that has no time for all; needs a deadline.
        steady: Vote over the last frames; None: results have no `steady` class.
        record: Where each result is recorded; it is closed with the stream.
        backoff: How long to wait before the engine is opened again.
        stall_s: After so long in one frame, the engine counts as stalled; a frame that runs when the stream is closed
            is waited for as long.

    Raises:
        UsageError: A value makes no sense, or not with the others.
        Exception: What `open` raised, or the classifier while it was warmed up.
    """

    def __init__(
        self,
        open: Callable[[], SmoothedClassifier],
        on_result: Callable[[StreamResult], None],
        *,
        origin: Origin,
        deadline_s: float | None = None,
        reduced: SmoothingPolicy | None = None,
        steady: TemporalVote | None = None,
        record: FrameRecorder | None = None,
        backoff: Backoff = BACKOFF,
        stall_s: float = 2.0,
    ) -> None:
        _check_times(deadline_s, stall_s, reduced)
        if record is not None:
            record.claim()
        self._deadline_ns = None if deadline_s is None else round(deadline_s * 1e9)
        self._stall_s = stall_s
        self._backoff = backoff
        self._buffers = FrameBuffers()
        self._mailbox = Mailbox(self._buffers, deadline_s, stall_s)
        self._delivery = Delivery(on_result, steady, record)
        self._keeper = Keeper(open, origin, reduced)
        self._record = record
        self._failures = 0  # in a row
        self._restarts = 0
        self._process = os.getpid()
        self._clock_gone = False
        opened: SimpleQueue[BaseException | None] = SimpleQueue()
        # Daemons: a process has to be able to end although an engine hangs. atexit closes what can be closed.
        self._worker = threading.Thread(target=self._work, args=(opened,), name="flss-stream-worker", daemon=True)
        self._clock = threading.Thread(target=self._deliver, name="flss-stream-clock", daemon=True)
        try:
            self._worker.start()
            error = opened.get()
            if error is not None:
                raise error
            if record is not None:
                record.begin({**self.facts(), "deadline_s": deadline_s})
            self._clock.start()
        except BaseException:  # also Ctrl-C
            self._mailbox.close()
            if record is not None:
                record.close()
            raise
        atexit.register(self.close)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self._keeper.class_names

    @property
    def origin(self) -> Origin:
        """What decides now."""
        return self._keeper.origin

    def facts(self) -> dict[str, Any]:
        """Give what decides as JSON values: origin, class names, policies, library, device and versions."""
        return self._keeper.facts()

    def submit(self, image: object, *, stamp: int | None = None, source: object = None) -> int:
        """Hand a frame in; any thread may, and none waits for the engine or the callback.

        Args:
            image: (H', W', 3) uint8 RGB of any size, or (3, H, W) float32 in [0, 1] of the encoder's; it is copied, so
                the caller may write to it at once. Anything else has an `invalid_input` result; of a `DataError`, as
                `image_from_ros` raises it, with what it says.
            stamp: The source's own time in nanoseconds, for the result.
            source: Anything that is to come back with the result.

        Returns:
            The number of the frame, from 0.

        Raises:
            UsageError: The stream is closed, or belongs to a parent process; or the stamp is no whole number.
        """
        return self._submit(image, stamp, source, None)

    def classify(self, image: object, *, stamp: int | None = None, source: object = None) -> StreamResult:
        """Hand a frame in and wait for its result; the callback gets that, too.

        Args and errors are those of `submit`.

        Returns:
            The result, by the deadline; without a deadline a stalled engine is waited for until somebody closes.

        Raises:
            UsageError: As `submit`, or it was called in the callback, which would wait for itself.
        """
        self._delivery.refuse_callback()
        box: SimpleQueue[StreamResult] = SimpleQueue()
        self._submit(image, stamp, source, box)
        return box.get()

    def health(self) -> StreamHealth:
        """Say how the stream fares; any thread, never waits for engine or callback.

        Raises:
            UsageError: The stream belongs to a parent process.
        """
        self._refuse_fork()
        lost = 0 if self._record is None else self._record.lost
        return examine(self._mailbox, self._delivery, self._stall_s, restarts=self._restarts, record_lost=lost)

    def close(self) -> None:
        """Take no more frames, deliver what is due, and close the engines; twice is fine, and any thread may.

        The frame that waits is `superseded`. The one that runs is waited for, at most until its deadline or for
        `stall_s`, and is `fault` then; an engine that does not come back is left behind in its thread. Where it would
        wait for its caller, in the callback and in a signal's handler that interrupted a call of this stream, it does
        not wait; and a handler that raises ends the wait. Then the results that are left come after it, at the latest
        when it is called again or the process ends.
        """
        if os.getpid() != self._process:
            return
        self._mailbox.close()
        if self._mailbox.is_held() or threading.current_thread() in (self._worker, self._clock):
            return
        wait_until(lambda: self._clock_gone, self._stall_s + 1)
        left = []
        for thread, gone in ((self._worker, self._mailbox.worker_gone), (self._clock, self._clock_gone)):
            if gone:
                thread.join(1)  # it has nothing left to do
            else:
                left.append(thread.name)
        if left:
            _log.warning("engine or callback did not come back within %g s; left behind: %s", self._stall_s, left)
        if self._record is not None:
            self._record.close()
        atexit.unregister(self.close)

    def __enter__(self) -> StreamClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, image: object, stamp: int | None, source: object, box: SimpleQueue[StreamResult] | None) -> int:
        now = time.monotonic_ns()
        self._refuse_fork()
        frame = Frame(_whole(stamp), source, now, NEVER if self._deadline_ns is None else now + self._deadline_ns, box)
        try:
            frame.pixels = self._buffers.copy(image)
        except DataError as error:
            frame.decision = unanswered(Status.INVALID_INPUT, error.problem)
        return self._mailbox.put(frame)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._process:  # its threads are not here, and its locks may be held for ever
            raise UsageError("the stream belongs to a parent process", "open one in each process, after the fork")

    def _work(self, opened: SimpleQueue[BaseException | None]) -> None:
        """Run frames until the stream is closed: the worker's thread."""
        try:
            self._keeper.open()
        except BaseException as error:
            opened.put(error)
            return
        opened.put(None)
        try:
            while (frame := self._mailbox.next_frame()) is not None:
                self._answer(frame)
        finally:
            self._keeper.drop()
            self._mailbox.leave()

    def _answer(self, frame: Frame) -> None:
        try:
            decision = self._keeper.decide(frame)
        except BaseException as error:  # whatever an engine's plug-in raises, the stream goes on
            outage = self._failed(error)
        else:
            if decision.top_label is not None:
                self._failures = 0
            if self._mailbox.finish(frame, decision):
                self._delivery.deliver(frame, self._keeper.origin)
            return
        if self._mailbox.fail(frame, outage):
            self._delivery.deliver(frame, self._keeper.origin)
        self._keeper.drop()
        self._reopen(outage)

    def _reopen(self, outage: Outage) -> None:
        """Open the classifier again, as often as it takes; frames are `fault` meanwhile."""
        while self._mailbox.sleep_until(outage.next_try):
            try:
                self._keeper.open()
            except BaseException as error:
                outage = self._failed(error)
                self._mailbox.prolong(outage)
            else:
                self._restarts += 1
                self._mailbox.recover()
                return

    def _failed(self, error: BaseException) -> Outage:
        self._failures += 1
        pause_s = self._backoff.delay_s(self._failures)
        reason = reason_of(error)
        unexpected = not isinstance(error, FLSSError)
        _log.error("the engine failed, next try in %.1f s: %s", pause_s, reason, exc_info=unexpected)
        return Outage(reason, time.monotonic_ns() + round(pause_s * 1e9))

    def _deliver(self) -> None:
        """Deliver until nothing is left to be delivered: the clock's thread."""
        try:
            while (frame := self._mailbox.next_delivery()) is not None:
                self._delivery.deliver(frame, self._keeper.origin)
        finally:
            if self._record is not None:
                self._record.end()
            self._clock_gone = True


def _whole(stamp: int | None) -> int | None:
    """Return a stamp as Python's own integer: NumPy's, which a bag's reader may give, is none of JSON's."""
    if stamp is None:
        return None
    try:
        return operator.index(stamp)
    except TypeError as error:
        raise UsageError(f"the stamp is {stamp!r}", "pass nanoseconds as a whole number, or None") from error


def _check_times(deadline_s: float | None, stall_s: float, reduced: SmoothingPolicy | None) -> None:
    for name, value in (("deadline_s", deadline_s), ("stall_s", stall_s)):
        if value is not None and not (math.isfinite(value) and 0 < value <= _LONGEST_S):
            raise UsageError(f"{name} is {value}", f"pass a time in seconds, > 0 and at most {_LONGEST_S:g}")
    if reduced is not None and deadline_s is None:
        raise UsageError("fewer samples are for frames that run out of time", "pass a deadline, or no reduced policy")

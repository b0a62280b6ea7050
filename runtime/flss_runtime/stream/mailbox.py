"""Where the frames of a stream wait and who may settle them: all that its threads share, behind one lock."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Condition, RLock

from flss_runtime.decision import Decision, Status, unanswered
from flss_runtime.errors import UsageError
from flss_runtime.stream.buffers import FrameBuffers
from flss_runtime.stream.frame import NEVER, Frame

_SUPERSEDED = unanswered(Status.SUPERSEDED, "a newer frame came before its turn")
_CLOSED = unanswered(Status.SUPERSEDED, "the stream was closed before its turn")
_ANSWERS = (Status.ACCEPTED, Status.LOW_VOTE)


@dataclass(frozen=True, slots=True)
class Outage:
    """Why there is no classifier, and when the next one is opened (`time.monotonic_ns`)."""

    reason: str
    next_try: int

    def decision(self) -> Decision:
        """Make the decision of a frame that comes meanwhile."""
        left_s = max(0.0, (self.next_try - time.monotonic_ns()) / 1e9)
        when = f"next try in {left_s:.1f} s" if left_s else "it is being opened"
        return unanswered(Status.FAULT, f"engine restarts, {when}: {self.reason}")


class Mailbox:
    """One frame runs, at most one waits, and the newest one is the one that waits.

    Three kinds of threads meet here. Any thread `put`s frames. The worker takes the next one, runs it and `finish`es
    it. The clock sleeps until a deadline, or until there is a result to deliver that is not the worker's own: so no
    thread of the caller's ever runs the callback.

    A frame is settled once, under the lock; whoever settles it sees that it is delivered. No other lock is taken while
    this one is held.

    Args:
        buffers: Where the copies of frames go back to.
        deadline_s: For the words of a missed deadline; None where there is none.
        close_s: How long a frame that runs is waited for when the stream is closed.
    """

    def __init__(self, buffers: FrameBuffers, deadline_s: float | None, close_s: float) -> None:
        self._lock = RLock()  # a signal's handler may close the stream while its thread is in `put`
        self._work = Condition(self._lock)  # the worker waits for a frame, or for its next try
        self._alarm = Condition(self._lock)  # the clock waits for a deadline, or for something to deliver
        self._buffers = buffers
        self._waiting: Frame | None = None
        self._running: Frame | None = None
        self._handed_over = False  # the worker delivers the frame that ran
        self._outbox: deque[Frame] = deque()  # settled, for the clock to deliver
        self._alarm_at = NEVER
        self._outage: Outage | None = None
        self._close_ns = round(close_s * 1e9)
        self._give_up_at = NEVER  # other than NEVER: the stream is being closed
        self._worker_gone = False
        limit = 0.0 if deadline_s is None else deadline_s * 1e3
        self._unstarted = unanswered(Status.DEADLINE, f"its turn did not come within {limit:g} ms")
        self._undecided = unanswered(Status.DEADLINE, f"it was not decided within {limit:g} ms")
        self._unclosed = unanswered(Status.FAULT, f"the engine did not answer within {close_s:g} s of closing")
        self.submitted = 0
        self.last_submitted: int | None = None
        self.late = 0

    def put(self, frame: Frame) -> int:
        """Number a frame and let it wait, or settle it at once where it has a decision already or cannot have one.

        Raises:
            UsageError: The stream is closed.
        """
        with self._lock:
            if self._give_up_at != NEVER:
                self._buffers.give(frame.pixels)
                raise UsageError("the stream is closed", "submit frames before close()")
            decision = frame.decision
            if decision is None and self._outage is not None:
                decision = self._outage.decision()
            # Ctrl-C strikes between calls. There is none from here to the outbox, so no frame with a number is lost.
            frame.number = self.submitted
            self.submitted += 1
            self.last_submitted = frame.submitted
            settled: Frame | None = frame
            if decision is None:
                decision, waiting = _SUPERSEDED, self._waiting
                if waiting is None or waiting.submitted <= frame.submitted:  # else copying it took longer
                    settled, self._waiting = waiting, frame
            if settled is not None:
                settled.decision = decision
                settled.settled = True
                self._outbox.append(settled)
                self._release(settled)
                self._alarm.notify()
            if settled is not frame:
                self._work.notify()
                if frame.deadline < self._alarm_at:
                    self._alarm.notify()
            return frame.number

    def next_frame(self) -> Frame | None:
        """Wait for the frame that is to be run and mark it as running; None once the stream is closed."""
        with self._lock:
            self._mark_delivered()
            while self._give_up_at == NEVER:
                frame, self._waiting = self._waiting, None
                if frame is None:
                    self._work.wait()
                elif (now := time.monotonic_ns()) >= frame.deadline:
                    self._settle(frame, self._unstarted)
                    self._release(frame)
                else:
                    frame.started = now
                    self._running = frame
                    return frame
            return None

    def finish(self, frame: Frame, decision: Decision) -> bool:
        """Settle the frame that ran, unless its time is over; then its answer is late, and only counted.

        Returns:
            Whether the worker has to deliver it.
        """
        with self._lock:
            return self._finish(frame, decision)

    def fail(self, frame: Frame, outage: Outage) -> bool:
        """Settle the frame that the classifier failed on, and whatever comes until `recover`, as `fault`.

        Returns:
            Whether the worker has to deliver it.
        """
        with self._lock:
            self._outage = outage
            self._drop_waiting(outage.decision())
            return self._finish(frame, unanswered(Status.FAULT, outage.reason))

    def prolong(self, outage: Outage) -> None:
        """Replace the outage: opening failed too."""
        with self._lock:
            self._outage = outage

    def recover(self) -> None:
        """End the outage: there is a classifier."""
        with self._lock:
            self._outage = None

    def sleep_until(self, when: int) -> bool:
        """Let the worker wait for a time; return False as soon as the stream is closed."""
        with self._lock:
            self._mark_delivered()
            while self._give_up_at == NEVER:
                left = when - time.monotonic_ns()
                if left <= 0:
                    return True
                self._work.wait(left / 1e9)
            return False

    def next_delivery(self) -> Frame | None:
        """Wait for the next settled frame that the clock has to deliver; None once there will be none any more."""
        with self._lock:
            while True:
                now = time.monotonic_ns()
                self._settle_overdue(now)
                if self._outbox:
                    return self._outbox.popleft()
                closing = self._give_up_at != NEVER and not self._handed_over
                if closing and (self._worker_gone or now >= self._give_up_at):
                    return None
                self._alarm_at = self._next_alarm()
                self._alarm.wait(None if self._alarm_at == NEVER else (self._alarm_at - now) / 1e9)

    def close(self) -> None:
        """Take no more frames, and see that each of those taken gets a result; twice is fine."""
        with self._lock:
            if self._give_up_at == NEVER:
                self._give_up_at = time.monotonic_ns() + self._close_ns
            self._work.notify_all()  # also a second time: Ctrl-C may have cut the first one short
            self._alarm.notify_all()

    def leave(self) -> None:
        """Say that the worker has ended; without it the stream is closed."""
        with self._lock:
            self._give_up_at = min(self._give_up_at, time.monotonic_ns())
            self._worker_gone, self._handed_over = True, False
            self._alarm.notify_all()

    def is_held(self) -> bool:
        """Return whether this thread has the lock: it runs a signal's handler that came in one of these methods."""
        try:
            self._work.notify(0)  # nobody, and only its owner may
        except RuntimeError:
            return False
        return True

    @property
    def worker_gone(self) -> bool:
        """Whether the worker has ended, its engines closed."""
        return self._worker_gone

    def look(self) -> tuple[bool, Outage | None, int | None]:
        """Return whether the stream is closed, its outage, and since when the running frame runs."""
        with self._lock:
            running = self._running
            return self._give_up_at != NEVER, self._outage, None if running is None else running.started

    def _mark_delivered(self) -> None:
        self._handed_over = False
        if self._give_up_at != NEVER:
            self._alarm.notify()  # the clock waited for that

    def _settle(self, frame: Frame, decision: Decision) -> None:
        frame.decision = decision
        frame.settled = True
        self._outbox.append(frame)
        self._alarm.notify()

    def _release(self, frame: Frame) -> None:
        """Give the buffer of a frame back that does not run."""
        pixels, frame.pixels = frame.pixels, None
        self._buffers.give(pixels)

    def _drop_waiting(self, decision: Decision) -> None:
        frame = self._waiting
        if frame is not None:
            self._settle(frame, decision)
            self._waiting = None
            self._release(frame)

    def _finish(self, frame: Frame, decision: Decision) -> bool:
        self._running = None
        self._release(frame)
        answered = decision.status in _ANSWERS
        if frame.settled:
            self.late += answered
            return False
        if answered and time.monotonic_ns() >= frame.deadline:  # the clock has not come to it yet
            self.late += 1
            decision = self._undecided
        frame.decision = decision
        frame.settled = True
        self._handed_over = True
        return True

    def _settle_overdue(self, now: int) -> None:
        running = self._running
        if running is not None and not running.settled:
            if now >= running.deadline:
                self._settle(running, self._undecided)
            elif now >= self._give_up_at:
                self._settle(running, self._unclosed)
        if self._waiting is not None and now >= self._waiting.deadline:
            self._drop_waiting(self._unstarted)
        if self._give_up_at != NEVER:
            self._drop_waiting(_CLOSED)

    def _next_alarm(self) -> int:
        at = NEVER if self._handed_over else self._give_up_at  # the worker's end tells, and nothing else is left
        if self._waiting is not None:
            at = min(at, self._waiting.deadline)
        if self._running is not None and not self._running.settled:
            at = min(at, self._running.deadline)
        return at

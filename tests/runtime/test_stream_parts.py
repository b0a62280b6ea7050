"""The parts of a stream by themselves: waiting times, sample budgets, buffers, the vote over frames, timing."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from flss_runtime.decision import Decision, SmoothingPolicy, Status, unanswered
from flss_runtime.errors import DataError, UsageError
from flss_runtime.stream import Backoff, Origin, StreamResult, TemporalVote, Timing
from flss_runtime.stream.budget import SampleBudget
from flss_runtime.stream.buffers import FrameBuffers
from flss_runtime.stream.frame import NEVER, Frame
from flss_runtime.stream.mailbox import Mailbox

from .moody import until

FULL, REDUCED = SmoothingPolicy(100), SmoothingPolicy(10)
MS = 10**6
SECOND = 10**9


def accepted(label: int) -> Decision:
    return Decision(label, label, 90, 0.9, Status.ACCEPTED)


REJECTED = Decision(None, 1, 20, 0.2, Status.LOW_VOTE)


class TestBackoff:
    def test_it_doubles_up_to_its_limit(self) -> None:
        backoff = Backoff(0.1, 1.0)
        assert [backoff.delay_s(failures) for failures in (1, 2, 3, 4, 5, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]

    @pytest.mark.parametrize("times", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0), (-1.0, 1.0)])
    def test_times_that_make_no_sense_are_refused(self, times: tuple[float, float]) -> None:
        with pytest.raises(UsageError, match="back-off"):
            Backoff(*times)


class TestBudget:
    def test_all_samples_where_there_is_time(self) -> None:
        budget = SampleBudget(FULL, REDUCED, 10 * MS, 5 * MS)
        assert budget.choose(10 * MS) is FULL and budget.choose(NEVER) is FULL
        assert budget.choose(9 * MS) is REDUCED and budget.choose(-1) is REDUCED

    def test_without_reduced_policy_always_all(self) -> None:
        budget = SampleBudget(FULL, None, 10 * MS, 10 * MS)
        budget.took(FULL, 10**12)
        assert budget.choose(0) is FULL

    def test_it_follows_what_frames_take(self) -> None:
        budget = SampleBudget(FULL, REDUCED, 10 * MS, 5 * MS)
        for _ in range(2):
            budget.took(FULL, 50 * MS)
        assert budget.choose(20 * MS) is FULL, "two slow frames of 32 are an accident"
        budget.took(FULL, 50 * MS)
        assert budget.choose(20 * MS) is REDUCED
        for _ in range(32):
            budget.took(REDUCED, 5 * MS)  # as much as when it was opened: all samples would take 10 ms again
        assert budget.choose(11 * MS) is FULL and budget.choose(9 * MS) is REDUCED

    def test_fewer_samples_never_count_as_dearer(self) -> None:
        budget = SampleBudget(FULL, REDUCED, 10 * MS, 12 * MS)  # two measurements of nearly the same
        for _ in range(32):
            budget.took(REDUCED, 10 * MS)
        assert budget.choose(10 * MS) is FULL


class TestBuffers:
    def test_a_copy_is_the_images_own(self) -> None:
        buffers = FrameBuffers()
        image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        copied = buffers.copy(image[:, ::-1])
        image[:] = 0
        np.testing.assert_array_equal(copied[0, 0], [9, 10, 11])

    def test_after_the_first_frames_nothing_is_allocated(self) -> None:
        buffers = FrameBuffers()
        image = np.zeros((480, 640, 3), np.uint8)
        lent = [buffers.copy(image) for _ in range(3)]
        places = {array.ctypes.data for array in lent}
        for array in lent:
            buffers.give(array)
        tracemalloc.start()
        try:
            for _ in range(20):
                for array in [buffers.copy(image) for _ in range(3)]:
                    assert array.ctypes.data in places
                    buffers.give(array)
                    del array
            assert tracemalloc.get_traced_memory()[1] < 2 * image.nbytes, "one to spare, and no more"
        finally:
            tracemalloc.stop()

    def test_sizes_that_change_do_not_fill_the_memory(self) -> None:
        buffers = FrameBuffers()
        for width in range(1, 200):
            buffers.give(buffers.copy(np.zeros((100, width, 3), np.uint8)))
        assert len(buffers._free) <= 4

    def test_no_two_threads_get_the_same_buffer(self) -> None:
        buffers, image, mixed = FrameBuffers(), np.zeros((64, 64, 3), np.uint8), []

        def run(value: int) -> None:
            own = np.full_like(image, value)
            for _ in range(300):
                buffer = buffers.copy(own)
                if not (buffer == value).all():
                    mixed.append(value)
                buffers.give(buffer)

        threads = [threading.Thread(target=run, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not mixed

    @pytest.mark.parametrize(
        "image",
        [
            None,
            "frame.png",
            [[0]],
            np.zeros((8, 8), np.uint8),
            np.zeros((0, 8, 3), np.uint8),
            np.zeros((1, 8, 8, 3), np.uint8),
            np.zeros((8, 8, 3), np.int64),
            np.zeros((3, 8, 8), ">f4"),
            np.zeros((8, 8, 3), "datetime64[s]"),
            np.broadcast_to(np.uint8(0), (2**20, 2**20, 3)),
            np.array([[[None]]]),
        ],
        ids=str,
    )
    def test_what_is_no_frame_is_refused(self, image: Any) -> None:
        with pytest.raises(DataError, match="a frame is"):
            FrameBuffers().copy(image)


class TestMailbox:
    """What the clock usually is there for first, so that the stream as a whole does not show it."""

    def test_a_frame_whose_time_is_over_is_not_run(self) -> None:
        mailbox, frame = Mailbox(FrameBuffers(), 0.05, 1.0), Frame(None, None, 0, 1)
        mailbox.put(frame)
        worker = threading.Thread(target=mailbox.next_frame)
        worker.start()
        until(lambda: frame.settled)
        mailbox.close()
        worker.join()
        assert frame.decision == unanswered(Status.DEADLINE, "its turn did not come within 50 ms")
        assert frame.started is None and mailbox.next_delivery() is frame

    def test_an_answer_after_the_deadline_is_none(self) -> None:
        mailbox, frame = Mailbox(FrameBuffers(), 0.05, 1.0), Frame(None, None, 0, NEVER)
        mailbox.put(frame)
        assert mailbox.next_frame() is frame
        frame.deadline = 1
        assert mailbox.finish(frame, accepted(0)), "the worker delivers it, for the clock slept"
        assert frame.decision == unanswered(Status.DEADLINE, "it was not decided within 50 ms") and mailbox.late == 1

    def test_a_worker_that_dies_closes_the_stream(self) -> None:
        mailbox = Mailbox(FrameBuffers(), None, 1.0)
        first, second = Frame(None, None, 0, NEVER), Frame(None, None, 0, NEVER)
        mailbox.put(first)
        assert mailbox.next_frame() is first
        mailbox.put(second)
        mailbox.leave()
        statuses = {id(frame): frame.decision and frame.decision.status for frame in iter(mailbox.next_delivery, None)}
        assert statuses == {id(first): Status.FAULT, id(second): Status.SUPERSEDED}
        with pytest.raises(UsageError, match="closed"):
            mailbox.put(Frame(None, None, 0, NEVER))

    def test_an_older_frame_does_not_displace_a_newer_one(self) -> None:
        mailbox = Mailbox(FrameBuffers(), None, 1.0)
        newer, older, newest = (Frame(None, None, submitted, NEVER) for submitted in (5, 3, 9))
        assert [mailbox.put(frame) for frame in (newer, older, newest)] == [0, 1, 2]
        assert [mailbox.next_delivery(), mailbox.next_delivery()] == [older, newer]
        assert all(frame.decision and frame.decision.status is Status.SUPERSEDED for frame in (older, newer))
        assert mailbox.next_frame() is newest


class TestTemporalVote:
    def test_enough_of_the_last_frames(self) -> None:
        vote = TemporalVote(5, 3)
        decisions = [accepted(2), accepted(2), REJECTED, accepted(2), accepted(1), accepted(1), accepted(1)]
        assert [vote.update(decision, 0) for decision in decisions] == [None, None, None, 2, 2, None, 1]

    def test_superseded_frames_do_not_count(self) -> None:
        vote = TemporalVote(3, 2, max_age_s=None)
        missed, passed = unanswered(Status.DEADLINE, ""), unanswered(Status.SUPERSEDED, "")
        assert [vote.update(accepted(4), 0), vote.update(accepted(4), 0)] == [None, 4]
        assert [vote.update(passed, 0) for _ in range(10)] == [4] * 10
        assert [vote.update(missed, 0) for _ in range(2)] == [4, None]

    def test_superseded_frames_make_the_others_old(self) -> None:
        vote = TemporalVote(3, 2)
        passed = unanswered(Status.SUPERSEDED, "")
        assert [vote.update(accepted(4), 0), vote.update(accepted(4), 0)] == [None, 4]
        assert [vote.update(passed, at * SECOND // 10) for at in (2, 4, 6, 8)] == [4, 4, None, None]

    def test_old_frames_do_not_count(self) -> None:
        vote = TemporalVote(5, 3, max_age_s=1.0)
        assert [vote.update(accepted(0), at * SECOND // 2) for at in range(3)] == [None, None, 0]
        assert vote.update(unanswered(Status.SUPERSEDED, ""), SECOND + 1) is None  # the first one is too old by now
        assert [vote.update(accepted(0), 10 * SECOND + at) for at in range(3)] == [None, None, 0]

    def test_old_frames_do_not_count_in_whatever_order_they_come(self) -> None:
        vote = TemporalVote(3, 2, max_age_s=1.0)
        times = (20, 15, 5, 22)  # tenths of a second; the third one is too old when it comes
        decisions = REJECTED, accepted(4), accepted(4), accepted(4)
        found = [vote.update(decision, at * SECOND // 10) for decision, at in zip(decisions, times, strict=True)]
        assert found == [None, None, None, 4]
        vote = TemporalVote(5, 3, max_age_s=1.0)
        vote.update(REJECTED, 20 * SECOND)
        assert [vote.update(accepted(4), at * SECOND // 10) for at in (195, 196, 205)] == [None, None, 4]
        assert vote.update(accepted(4), 208 * SECOND // 10) is None, "two are too old, behind one that is not"

    def test_as_counted_from_the_beginning(self) -> None:
        draw = np.random.default_rng(0)
        for frames, needed in ((1, 1), (4, 3), (7, 4), (9, 9)):
            vote, labels = TemporalVote(frames, needed), []
            for _ in range(300):
                labels.append(int(draw.integers(-1, 2)))  # -1: rejected
                last = labels[-frames:]
                enough = [label for label in (0, 1) if last.count(label) >= needed]
                found = vote.update(REJECTED if labels[-1] < 0 else accepted(labels[-1]), 0)
                assert [found] == (enough or [None])

    @pytest.mark.parametrize("values", [(0, 1), (4, 2), (4, 5), (3, 0), (2, 1), (5, 3, 0.0), (5, 3, float("inf"))])
    def test_a_vote_with_two_winners_or_none_is_refused(self, values: tuple[Any, ...]) -> None:
        with pytest.raises(UsageError):
            TemporalVote(*values)


class TestResult:
    def test_stages_are_what_lies_between(self) -> None:
        timing = Timing(10 * MS, 12 * MS, 13 * MS, 20 * MS, 21 * MS)
        assert timing.stages_ms() == {"wait": 2.0, "fit": 1.0, "classify": 7.0, "deliver": 1.0, "total": 11.0}
        assert Timing(0, delivered=5 * MS).stages_ms() == {
            "wait": None,
            "fit": None,
            "classify": None,
            "deliver": None,
            "total": 5.0,
        }

    def test_a_record_is_flat(self) -> None:
        origin = Origin("ort", "fp32", "latent", "tiny.bundle", "0" * 64, 2.0)
        timing = Timing(0, 1 * MS, 2 * MS, 3 * MS, 4 * MS)
        decision = Decision(1, 1, 30, 0.75, Status.ACCEPTED, counter=12)
        result = StreamResult(3, 99, object(), decision, 1, 40, timing, origin)
        record = result.to_json(["cat", "dog"])
        assert all(isinstance(value, (str, int, float, bool, type(None))) for value in record.values())
        assert (record["frame"], record["stamp"], record["status"], record["class_name"]) == (3, 99, "accepted", "dog")
        assert (record["counter"], record["num_samples"], record["classify_ms"]) == (12, 40, 1.0)
        assert "class_name" not in result.to_json() and "source" not in record

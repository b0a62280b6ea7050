from __future__ import annotations

import json
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from flss_runtime.decision import Status
from flss_runtime.drift import DRIFTING, INSUFFICIENT, OK, DriftMonitor, DriftReference
from flss_runtime.errors import UsageError
from flss_runtime.statistics import clopper_pearson

from .drift_streams import Array, N, blocks, decision, draw, failed, most_evidence, population, reference_of, scenes

CLEAN, LOST = population(), population(-1.0, 0.1)


@pytest.fixture(scope="module")
def reference() -> DriftReference:
    return reference_of(draw(np.random.default_rng(0), CLEAN, (600,)))


def feed(monitor: DriftMonitor, votes: Array, reference: DriftReference) -> None:
    for each in votes.tolist():
        monitor.update(decision(each, reference.min_votes))


def clean(seed: int, frames: int) -> Array:
    return draw(np.random.default_rng(seed), CLEAN, (frames,))


class TestStates:
    def test_ok_then_drifting_until_it_is_reset(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        feed(monitor, clean(1, 2000), reference)
        found = monitor.report()
        assert (found["state"], found["reason"], found["since_frame"]) == (OK, "", None) and monitor.state == OK
        assert 0 <= found["evidence"] < 1 and found["frames"] == found["blocks"] == 2000

        feed(monitor, draw(np.random.default_rng(2), LOST, (300,)), reference)
        found = monitor.report()
        assert found["state"] == DRIFTING and found["evidence"] == 1
        assert 2000 < found["since_frame"] < 2150
        assert "more frames" in found["reason"] and "can explain" in found["reason"]
        rejected = found["shares"]["rejected"]
        assert rejected["now"] > rejected["reference_interval"][1] > rejected["reference"]

        feed(monitor, clean(3, 2000), reference)
        again = monitor.report()
        assert again["state"] == DRIFTING and again["since_frame"] == found["since_frame"]
        monitor.reset()
        assert monitor.report()["state"] == INSUFFICIENT and monitor.report()["frames"] == 0
        feed(monitor, clean(4, 2000), reference)
        assert monitor.report()["state"] == OK

    def test_reset_forgets_half_a_block(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=10)
        feed(monitor, np.full(5, 11), reference)
        monitor.reset()
        feed(monitor, np.full(10, N), reference)
        assert monitor.report()["shares"]["rejected"]["now"] == 0 and monitor.report()["blocks"] == 1

    def test_surer_votes_are_drift_too(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        feed(monitor, np.full(400, N), reference)
        assert monitor.report()["state"] == DRIFTING and "fewer frames" in monitor.report()["reason"]

    def test_votes_crowding_in_the_middle_are_drift_though_none_is_rejected(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        feed(monitor, np.full(400, 75), reference)
        found = monitor.report()
        assert found["state"] == DRIFTING and found["shares"]["rejected"]["now"] == 0

    def test_a_gate_that_answers_less_is_drift(self) -> None:
        reference = reference_of(clean(0, 300), gated=700)
        monitor = DriftMonitor(reference, dwell_frames=1)
        answered = np.random.default_rng(5).random(3000) < np.repeat([0.7, 0.3], [2000, 1000])
        votes = clean(6, 3000)
        for index, (gated, each) in enumerate(zip(answered.tolist(), votes.tolist(), strict=True)):
            if index == 2000:
                assert monitor.report()["state"] == OK
                assert monitor.report()["shares"]["left to the vote"]["reference"] == 0.3
            monitor.update(decision(0 if gated else each, reference.min_votes, gated))
        found = monitor.report()
        assert found["state"] == DRIFTING and found["since_frame"] < 2150
        assert found["shares"]["left to the vote"]["now"] == pytest.approx(0.7, abs=0.15)

    def test_without_a_reference_it_says_how_to_get_one(self) -> None:
        monitor = DriftMonitor(None)
        monitor.update(decision(90, 30))
        found = monitor.report()
        assert found["state"] == INSUFFICIENT and "flss-edge calibrate" in found["fix"] and found["shares"] == {}
        assert (found["frames"], found["ignored"], found["evidence"]) == (0, 1, 0)

    def test_a_reference_of_few_images_says_nothing(self) -> None:
        few = DriftReference((*[0] * N, 49), 0, 30)
        monitor = DriftMonitor(few)
        feed(monitor, clean(1, 100), few)
        assert monitor.report()["state"] == INSUFFICIENT and "49 images" in monitor.report()["reason"]
        enough = DriftMonitor(DriftReference((*[0] * N, 50), 0, 30), dwell_frames=1)
        for _ in range(100):
            enough.update(decision(N, 30))
        assert enough.report()["state"] == OK

    def test_before_the_first_block_there_are_no_shares(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=30)
        feed(monitor, clean(1, 29), reference)
        found = monitor.report()
        assert found["state"] == INSUFFICIENT and "only 29 frames" in found["reason"]
        assert found["shares"]["rejected"]["now"] is None and found["shares"]["rejected"]["interval"] is None

    def test_it_is_not_ok_before_that_where_the_horizon_is_shorter(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1, horizon_frames=2)
        feed(monitor, np.full(5, N), reference)
        assert monitor.state == INSUFFICIENT

    @pytest.mark.parametrize("dwell", [1, 30])
    def test_it_is_not_ok_while_no_alarm_is_possible(self, reference: DriftReference, dwell: int) -> None:
        """Frames that all are rejected, the worst there is, never pass for OK on their way to the alarm."""
        monitor, good = DriftMonitor(reference, dwell_frames=dwell), DriftMonitor(reference, dwell_frames=dwell)
        frames = 0
        while monitor.state != DRIFTING:
            assert monitor.state == INSUFFICIENT and frames < 2000
            feed(monitor, np.array([1]), reference)
            frames += 1
        feed(good, clean(1, frames - 1), reference)
        found = good.report()
        assert (found["state"], found["fix"]) == (INSUFFICIENT, "")
        assert found["reason"] == f"only {frames - 1} frames so far; fewer than {frames} cannot raise an alarm"
        feed(good, clean(2, 1), reference)
        assert good.state == OK


class TestObservations:
    @pytest.mark.parametrize("status", [Status.DEADLINE, Status.INVALID_INPUT, Status.SUPERSEDED, Status.FAULT])
    def test_a_frame_without_a_vote_is_none(self, reference: DriftReference, status: Status) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        for _ in range(500):
            monitor.update(failed(status))
        found = monitor.report()
        assert (found["state"], found["frames"], found["ignored"]) == (INSUFFICIENT, 0, 500)
        assert f"only 0 are by a vote of 100 samples that needs {reference.min_votes}" in found["reason"]

    @pytest.mark.parametrize("samples", [1, 10, 50, 99, 101, 200])
    def test_another_number_of_samples_is_none(self, reference: DriftReference, samples: int) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        for votes in range(1, samples + 1):
            monitor.update(decision(votes, 0, num_samples=samples))
        assert (monitor.report()["frames"], monitor.report()["ignored"]) == (0, samples)

    def test_another_threshold_is_none(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        for votes in range(1, N + 1):
            monitor.update(decision(votes, reference.min_votes - 5))
        assert monitor.report()["ignored"] == 5

    def test_what_is_no_observation_takes_no_place_in_a_block(self, reference: DriftReference) -> None:
        votes = clean(8, 900)
        plain, holed = DriftMonitor(reference, dwell_frames=7), DriftMonitor(reference, dwell_frames=7)
        feed(plain, votes, reference)
        for index, each in enumerate(votes.tolist()):
            if index % 3 == 0:
                holed.update(failed(Status.SUPERSEDED))
            holed.update(decision(each, reference.min_votes))
        assert {**holed.report(), "ignored": 0} == plain.report() and holed.report()["ignored"] == 300


class TestArithmetic:
    @pytest.mark.parametrize("dwell", [1, 2, 30])
    def test_is_that_of_the_simulated_streams(self, reference: DriftReference, dwell: int) -> None:
        """What the rate of false alarms is counted on is what runs on the robot."""
        votes = scenes(np.random.default_rng(3), CLEAN, (1, 3000), dwell)
        monitor = DriftMonitor(reference, dwell_frames=dwell)
        levels = np.array([reference.levels()])
        bounds = np.array([[reference.bounds(level, 0.005) for level in reference.levels()]])
        shares = list(blocks(votes, levels, dwell))
        most = 0.0
        for each in votes[0].tolist():
            monitor.update(decision(each, reference.min_votes))
            most = max(most, monitor._evidence)
        assert most == pytest.approx(float(most_evidence(bounds[..., 0], bounds[..., 1], shares)[0]))
        assert monitor.report()["blocks"] == len(shares)
        recent = np.array(shares)[-100:, 0].mean(axis=0)
        assert [each["now"] for each in monitor.report()["shares"].values()] == pytest.approx(recent.tolist())

    @pytest.mark.parametrize(("dwell", "horizon", "needed"), [(1, 1000, 1000), (30, 5900, 100), (30, 5901, 101)])
    def test_the_threshold_is_blocks_over_half_the_rate(self, dwell: int, horizon: int, needed: int) -> None:
        reference = DriftReference((*[0] * N, 500), 0, 30)
        monitor = DriftMonitor(reference, dwell_frames=dwell, false_alarm_rate=0.02, horizon_frames=horizon)
        assert monitor._threshold == pytest.approx(needed / 0.01)

    def test_shares_come_with_intervals(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=1)
        feed(monitor, np.array([N] * 30 + [11] * 10), reference)
        found = monitor.report()["shares"]
        rejected = found["rejected"]
        assert rejected["now"] == 0.25 and rejected["interval"] == list(clopper_pearson(10, 40))
        assert rejected["reference"] == reference.below(reference.min_votes) / 600
        assert rejected["reference_interval"] == list(reference.bounds(reference.min_votes, 0.005))
        assert list(found)[1:] == [f"votes < {level}" for level in reference.levels()[1:]]

    def test_an_interval_of_parts_of_a_block_is_rounded_outward(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=2)
        feed(monitor, np.array([11, N, N] * 9 + [11, N]), reference)  # ten blocks, half of each rejected
        feed(monitor, np.array([N, N, N]), reference)
        rejected = monitor.report()["shares"]["rejected"]
        assert rejected["now"] == 5 / 11
        assert rejected["interval"] == [clopper_pearson(5, 11)[0], clopper_pearson(5, 11)[1]]

    def test_the_report_is_json(self, reference: DriftReference) -> None:
        for monitor in (DriftMonitor(None), DriftMonitor(reference, dwell_frames=1)):
            feed(monitor, clean(1, 50), reference)
            assert json.loads(json.dumps(monitor.report(), allow_nan=False)) == monitor.report()

    def test_no_memory_grows(self, reference: DriftReference) -> None:
        monitor = DriftMonitor(reference, dwell_frames=3)
        frames = [decision(each, reference.min_votes) for each in clean(1, 5000).tolist()]
        for each in frames:
            monitor.update(each)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for each in frames:
                monitor.update(each)
            after, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1024 and most - before < 4096

    def test_a_report_from_another_thread_is_whole(self, reference: DriftReference) -> None:
        monitor, frames = DriftMonitor(reference, dwell_frames=1), [decision(90, reference.min_votes)] * 5000
        reports: list[dict[str, Any]] = []
        writer = threading.Thread(target=lambda: [monitor.update(each) for each in frames])
        writer.start()
        while writer.is_alive():
            reports.append(monitor.report())
        writer.join()
        assert reports and all(each["frames"] == each["blocks"] for each in reports)


@pytest.mark.parametrize(
    "changed",
    [
        {"dwell_frames": 0},
        {"dwell_frames": -1},
        {"false_alarm_rate": 0.0},
        {"false_alarm_rate": 1.0},
        {"false_alarm_rate": float("nan")},
        {"horizon_frames": 29},
        {"horizon_frames": 0},
    ],
)
def test_settings_out_of_range(changed: dict[str, Any], reference: DriftReference) -> None:
    (name,) = changed
    with pytest.raises(UsageError, match=name):
        DriftMonitor(reference, **changed)

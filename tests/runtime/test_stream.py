"""A stream gives each frame one result, the one that the classifier gives, and copes with what callers do to it."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flss_runtime
from flss_runtime.decision import SmoothingPolicy, Status
from flss_runtime.errors import BundleError, DataError, UncalibratedError, UsageError
from flss_runtime.images import fit_image
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.stream import Origin, StreamClassifier, TemporalVote

from .bundles import NOISE_SCALE, entry, random_images, seal_policy, write_tiny
from .cascades import cascade_entry
from .moody import Results, moody_image, opened, until, write_moody

if TYPE_CHECKING:
    from pathlib import Path

    from flss_runtime.bundle import Bundle

    from .conftest import TinyModel

WARM_UP = 6  # noise counters that opening takes


@pytest.fixture(scope="module")
def bundle(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("stream")
    return write_tiny(folder / "tiny.bundle", tiny, policy={"calibrations": [entry()]})


@pytest.fixture(scope="module")
def moody(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_moody(tmp_path_factory.mktemp("moody") / "moody.bundle", tiny)


class TestResults:
    def test_they_are_those_of_the_classifier(self, tiny: TinyModel, bundle: Bundle) -> None:
        images = random_images(tiny, 40)
        noise = SeededNoise(0)
        noise.counter = WARM_UP
        with open_classifier(bundle, noise=noise, threads=1) as classifier:
            expected = [classifier.classify(image)[0] for image in images]
        with opened(bundle, Results()) as stream:
            found = [stream.classify(image) for image in images]
        assert [result.decision for result in found] == expected
        assert {decision.status for decision in expected} == {Status.ACCEPTED, Status.LOW_VOTE}
        assert [result.frame for result in found] == list(range(40))
        assert {result.num_samples for result in found} == {40}

    def test_what_was_handed_in_comes_back(self, tiny: TinyModel, bundle: Bundle) -> None:
        results, header = Results(), object()
        with opened(bundle, results, deadline_s=10.0) as stream:
            before = time.monotonic_ns()
            number = stream.submit(random_images(tiny, 1)[0], stamp=123, source=header)
            (result,) = results.wait(1)
            after = time.monotonic_ns()
        assert (result.frame, result.stamp, result.source) == (number, 123, header) == (0, 123, header)
        timing = result.timing
        stages = [timing.submitted, timing.started, timing.fitted, timing.decided, timing.delivered]
        times = [stage for stage in stages if stage is not None]
        assert len(times) == 5 and sorted(times) == times and before <= times[0] and times[-1] <= after
        assert result.origin == stream.origin
        assert stream.origin == Origin("ort", "fp32", "latent", "tiny.bundle", bundle.digest, NOISE_SCALE)
        assert stream.class_names == bundle.class_names

    def test_the_camera_may_overwrite_its_frame_at_once(self, tiny: TinyModel, moody: Bundle) -> None:
        busy, image, results = moody_image(tiny, 60), moody_image(tiny, seed=9), Results()
        with opened(moody, results) as stream:
            expected = [stream.classify(image).decision.top_label for _ in range(9)]
            stream.submit(busy)
            until(lambda: stream.health().busy_s is not None)
            number = stream.submit(image)  # waits, while its caller writes to it
            image[:] = 255  # the encoder would fail on that
            (found,) = [result for result in results.wait(11) if result.frame == number]
        assert found.decision.status is not Status.FAULT and found.decision.top_label in expected

    def test_a_camera_frame_of_any_size_is_fitted(self, tiny: TinyModel, bundle: Bundle) -> None:
        frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        noise = SeededNoise(0)
        noise.counter = WARM_UP
        with open_classifier(bundle, noise=noise, threads=1) as classifier:
            (expected,) = classifier.classify(fit_image(frame, bundle.input))
        with opened(bundle, Results()) as stream:
            assert stream.classify(frame).decision == expected

    def test_a_float_frame_is_taken_as_the_classifier_takes_it(self, tiny: TinyModel, bundle: Bundle) -> None:
        image = random_images(tiny, 1)[0]
        floats = (image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
        decisions = []
        for frame in (image, floats):
            with opened(bundle, Results()) as stream:
                decisions.append(stream.classify(frame).decision)
        assert decisions[0] == decisions[1]

    @pytest.mark.parametrize(
        "image",
        [
            None,
            "no frame",
            np.zeros((8, 8), np.uint8),
            np.zeros((0, 0, 3), np.uint8),
            np.zeros((8, 8, 4), np.uint8),
            np.zeros((8, 8, 3), np.float64),
            np.full((3, 8, 8), np.nan, np.float32),
            np.full((3, 8, 8), 255, np.float32),
            np.zeros((3, 9, 8), np.float32),
            np.broadcast_to(np.uint8(0), (2**20, 2**20, 3)),
        ],
        ids=["None", "text", "grey", "empty", "alpha", "float64", "NaN", "bytes as floats", "size", "a terabyte"],
    )
    def test_bad_pixels_are_a_result_never_an_error(self, tiny: TinyModel, bundle: Bundle, image: Any) -> None:
        with opened(bundle, Results(), deadline_s=10.0) as stream:
            result = stream.classify(image, stamp=5)
            assert (result.decision.status, result.stamp) == (Status.INVALID_INPUT, 5)
            assert result.decision.reason and result.num_samples == 0 and result.timing.decided is None
            assert stream.classify(random_images(tiny, 1)[0]).decision.top_label is not None
            assert stream.health().restarts == 0

    def test_a_message_that_holds_no_image_is_a_frame_too(self, bundle: Bundle) -> None:
        with opened(bundle, Results()) as stream:
            result = stream.classify(DataError("encoding 'yuv9' is not known", "publish rgb8"), stamp=5)
        assert (result.decision.status, result.stamp) == (Status.INVALID_INPUT, 5)
        assert result.decision.reason == "encoding 'yuv9' is not known"

    def test_the_vote_over_frames_is_in_the_result(self, tiny: TinyModel, bundle: Bundle) -> None:
        images = random_images(tiny, 20).repeat(4, axis=0)  # a camera that looks at each thing for a while
        vote = TemporalVote(3, 2, max_age_s=None)
        with opened(bundle, Results(), steady=TemporalVote(3, 2, max_age_s=None)) as stream:
            found = [stream.classify(image) for image in images]
        assert [result.steady for result in found] == [vote.update(result.decision, 0) for result in found]
        assert len({result.steady for result in found}) > 1

    @pytest.mark.parametrize("sampling", ["latent"])
    def test_a_cascade_streams_too(self, tiny: TinyModel, cascade_path: Path, middle: float, sampling: str) -> None:
        from flss_runtime.bundle import load_bundle

        seal_policy(cascade_path, lambda policy: policy.update(calibrations=[cascade_entry(middle)]))
        images = random_images(tiny, 20)
        with opened(load_bundle(cascade_path), Results(), sampling=sampling) as stream:
            found = [stream.classify(image).decision for image in images]
        assert {decision.gated for decision in found} == {True, False}


class TestLatestFrameWins:
    def test_the_frame_that_waits_is_superseded_at_once(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        with opened(moody, results) as stream:
            stream.submit(moody_image(tiny, 127))
            until(lambda: stream.health().busy_s is not None)
            for seed in range(5):
                stream.submit(moody_image(tiny, seed=seed))
            assert [result.frame for result in results.wait(4)] == [1, 2, 3, 4], "while the first one runs"
            assert stream.health().busy_s is not None
            results.wait(6)
        assert results.statuses() | {0: "", 5: ""} == {0: "", **dict.fromkeys(range(1, 5), "superseded"), 5: ""}
        assert [result.frame for result in results.all][4:] == [0, 5]

    def test_a_bad_frame_does_not_take_the_place_of_a_good_one(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        with opened(moody, results) as stream:
            stream.submit(moody_image(tiny, 60))
            until(lambda: stream.health().busy_s is not None)
            stream.submit(moody_image(tiny))
            stream.submit(None)
            results.wait(3)
        assert results.statuses()[2] == "invalid_input"
        assert results.statuses()[1] in ("accepted", "low_vote")


class TestOpening:
    def test_it_is_warm_when_it_is_open(self, tiny: TinyModel, bundle: Bundle) -> None:
        with opened(bundle, Results()) as stream:
            assert stream.classify(random_images(tiny, 1)[0]).decision.counter == WARM_UP
            assert stream.health().submitted == 1

    def test_the_package_offers_it(self) -> None:
        assert flss_runtime.StreamClassifier is StreamClassifier
        assert callable(flss_runtime.open_stream) and flss_runtime.StreamResult.__slots__

    def test_mistakes_are_told_at_once(self, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="absent"):
            opened(tmp_path / "absent.bundle", Results())
        with pytest.raises(UncalibratedError, match="N = 7"):
            opened(bundle, Results(), deadline_s=1.0, reduced_samples=7)
        with pytest.raises(UsageError, match="run out of time"):
            opened(bundle, Results(), reduced_samples=40)
        with pytest.raises(UsageError, match="reduced policy has N = 40"):
            opened(bundle, Results(), deadline_s=1.0, reduced_samples=40)
        for wrong in ({"deadline_s": 0.0}, {"deadline_s": float("nan")}, {"stall_s": -1.0}, {"stall_s": float("inf")}):
            with pytest.raises(UsageError, match="pass a time"):
                opened(bundle, Results(), **wrong)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("flss-stream")]

    def test_a_reduced_policy_of_another_scale_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match="at noise scale 1"):
            StreamClassifier(
                lambda: open_classifier(bundle, threads=1),
                Results(),
                origin=Origin("ort", "fp32", "latent", "tiny.bundle", bundle.digest, NOISE_SCALE),
                deadline_s=1.0,
                reduced=SmoothingPolicy(20, 1.0),
            )


def test_health_counts_what_was_delivered(tiny: TinyModel, bundle: Bundle) -> None:
    with opened(bundle, Results()) as stream:
        fresh = stream.health()
        assert (fresh.state, fresh.submitted, fresh.frame_age_s, fresh.answer_age_s) == ("running", 0, None, None)
        for image in [*random_images(tiny, 20), None]:
            stream.classify(image)
        health = stream.health()
    counts = {status.value: count for status, count in health.results.items() if count}
    assert counts.pop("invalid_input") == 1 and sum(counts.values()) == 20 and set(counts) == {"accepted", "low_vote"}
    assert (health.submitted, health.pending, health.late, health.restarts, health.next_try_s) == (21, 0, 0, 0, None)
    ages = [health.frame_age_s, health.result_age_s, health.answer_age_s]
    assert all(age is not None and 0 <= age < 10 for age in ages)
    fields = health.to_json()
    assert fields["state"] == "running" and fields["results"]["invalid_input"] == 1
    assert health.callback_max_ms > 0


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts CPython's memory")
def test_frames_leave_no_memory_behind(tiny: TinyModel, bundle: Bundle) -> None:
    import gc
    import tracemalloc

    image = np.zeros((480, 640, 3), np.uint8)
    with opened(bundle, lambda result: None) as stream:
        for _ in range(20):
            stream.classify(image)
        gc.collect()
        tracemalloc.start()
        try:
            stream.classify(image)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(200):
                stream.classify(image)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 20_000, "200 frames of 900 KB"

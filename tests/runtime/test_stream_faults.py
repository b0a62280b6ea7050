"""An engine that fails costs the frames meanwhile their answer, never the stream."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flss_runtime.bundle import load_bundle
from flss_runtime.decision import Status
from flss_runtime.errors import InferenceError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.stream import Backoff, Origin, StreamClassifier, StreamState

from .bundles import edit_manifest
from .moody import Results, moody_image, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.classifier import SmoothedClassifier

    from .conftest import TinyModel

QUICK = Backoff(0.02, 0.1)
SLOW = Backoff(30.0, 30.0)


@pytest.fixture
def own(moody: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle to spoil."""
    return Path(shutil.copytree(moody.path, tmp_path / "moody.bundle"))


def test_the_graph_really_fails(tiny: TinyModel, moody: Bundle) -> None:
    with open_classifier(moody, threads=1) as classifier:
        assert classifier.classify(moody_image(tiny))[0].top_label is not None
        with pytest.raises(InferenceError, match="out of"):
            classifier.classify(moody_image(tiny, fails=True))


class TestFault:
    def test_it_is_a_result_and_the_stream_goes_on(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        with opened(moody, results, backoff=QUICK) as stream:
            first = stream.classify(moody_image(tiny))
            failed = stream.classify(moody_image(tiny, fails=True), stamp=7)
            assert (failed.decision.status, failed.stamp, failed.num_samples) == (Status.FAULT, 7, 0)
            assert "out of" in failed.decision.reason
            until(lambda: stream.health().restarts == 1)
            again = stream.classify(moody_image(tiny))
            assert stream.health().state is StreamState.RUNNING
        assert first.decision.top_label is not None and again.decision.top_label is not None
        assert again.decision.counter is not None and first.decision.counter is not None
        assert again.decision.counter > first.decision.counter + 1, "the noise goes on, it does not begin again"

    def test_meanwhile_frames_are_told_at_once(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        with opened(moody, results, backoff=SLOW, deadline_s=20.0) as stream:
            stream.submit(moody_image(tiny, 60, fails=True))
            until(lambda: stream.health().busy_s is not None)
            stream.submit(moody_image(tiny))  # waits when it happens
            results.wait(2)
            start = time.monotonic()
            during = stream.classify(moody_image(tiny))
            assert time.monotonic() - start < 1
            assert stream.classify(None).decision.status is Status.INVALID_INPUT
            health = stream.health()
        assert results.statuses() == {0: "fault", 1: "fault", 2: "fault", 3: "invalid_input"}
        assert "next try in" in during.decision.reason and "out of" in during.decision.reason
        assert health.state is StreamState.FAULTED and "out of" in health.reason
        assert health.next_try_s is not None and 20 < health.next_try_s <= 30

    def test_closing_does_not_wait_for_the_next_try(self, tiny: TinyModel, moody: Bundle) -> None:
        stream = opened(moody, Results(), backoff=SLOW)
        stream.classify(moody_image(tiny, fails=True))
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 5 and not stream._worker.is_alive()

    def test_waiting_grows_until_a_frame_was_answered(self, tiny: TinyModel, moody: Bundle) -> None:
        with opened(moody, Results(), backoff=QUICK) as stream:
            for failures in (1, 2, 3):
                stream.classify(moody_image(tiny, fails=True))
                until(lambda wanted=failures: stream.health().restarts == wanted)  # type: ignore[misc]
                assert stream._failures == failures, "opening alone is no success"
            stream.classify(moody_image(tiny))
            assert stream._failures == 0

    def test_a_late_fault_gives_no_second_result(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        with opened(moody, results, backoff=QUICK, deadline_s=0.01) as stream:
            stream.submit(moody_image(tiny, 127, fails=True))
            assert results.wait(1)[0].decision.status is Status.DEADLINE
            until(lambda: stream.health().restarts == 1)
            health = stream.health()
        assert len(results.all) == 1 and health.late == 0 and health.results[Status.FAULT] == 0

    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
    def test_other_errors_are_faults_too(
        self,
        tiny: TinyModel,
        moody: Bundle,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        error: type[BaseException],
    ) -> None:
        """A classifier whose noise source breaks, and that cannot be closed: nothing that anybody foresaw."""

        def unclosable() -> None:
            raise error("still in use")

        def broken() -> SmoothedClassifier:
            classifier = open_classifier(moody, threads=1)
            classifier.noise = _Breaks(10, error)
            monkeypatch.setattr(classifier, "close", unclosable)
            return classifier

        origin = Origin("ort", "fp32", "latent", "moody.bundle", moody.digest, 2.0)
        with (
            caplog.at_level(logging.ERROR, "flss_runtime"),
            StreamClassifier(broken, Results(), origin=origin, backoff=QUICK) as stream,
        ):
            found = [stream.classify(moody_image(tiny)).decision for _ in range(5)]
            until(lambda: stream.health().restarts == 1)
            assert stream.classify(moody_image(tiny)).decision.status is not Status.FAULT, "it goes on"
        assert [decision.status is Status.FAULT for decision in found] == [False] * 4 + [True]
        assert found[-1].reason == f"{error.__name__}: no noise left"
        (record,) = [record for record in caplog.records if "the engine failed" in record.message]
        assert record.exc_info is not None, "what nobody foresaw is logged with its traceback"


class TestBundle:
    def test_one_that_vanished_is_reported_and_found_again(self, tiny: TinyModel, own: Path, tmp_path: Path) -> None:
        with opened(own, Results(), backoff=QUICK) as stream:
            assert stream.classify(moody_image(tiny)).decision.top_label is not None
            own.rename(tmp_path / "gone")
            assert stream.classify(moody_image(tiny)).decision.top_label is not None, "it runs from memory"
            stream.classify(moody_image(tiny, fails=True))
            until(lambda: "moody.bundle" in stream.health().reason)
            assert stream.health().state is StreamState.FAULTED and stream.health().restarts == 0
            assert "moody.bundle" in stream.classify(moody_image(tiny)).decision.reason
            (tmp_path / "gone").rename(own)
            until(lambda: stream.health().state is StreamState.RUNNING)
            assert stream.classify(moody_image(tiny)).decision.top_label is not None

    @pytest.mark.parametrize("change", ["altered", "replaced"])
    def test_another_one_in_its_place_is_not_run(self, tiny: TinyModel, own: Path, change: str) -> None:
        with opened(own, Results(), backoff=QUICK) as stream:
            if change == "altered":
                with (own / "encoder.onnx").open("ab") as file:
                    file.write(b" ")
            else:
                edit_manifest(own, lambda manifest: manifest.update(name="other"))
                load_bundle(own)  # sound, but another one
            stream.classify(moody_image(tiny, fails=True))
            words = "encoder.onnx" if change == "altered" else "replaced by another bundle"
            until(lambda: words in stream.health().reason)
            assert stream.health().restarts == 0

    def test_thresholds_stay_those_of_the_start(self, tiny: TinyModel, own: Path) -> None:
        from flss_runtime.bundle import store_calibration

        from .bundles import entry

        with opened(own, Results(), backoff=QUICK) as stream:
            store_calibration(load_bundle(own), entry(min_votes=40))
            stream.classify(moody_image(tiny, fails=True))
            until(lambda: stream.health().restarts == 1)
            assert stream.facts()["policy"]["min_votes"] == 17
            found = {stream.classify(moody_image(tiny, seed=seed)).decision.status for seed in range(12)}
        assert Status.ACCEPTED in found

    def test_a_first_open_that_fails_is_the_callers(self, tiny: TinyModel, own: Path) -> None:
        def spoilt() -> SmoothedClassifier:
            classifier = open_classifier(own, threads=1)
            classifier.close()  # so that the warm-up fails
            return classifier

        origin = Origin("ort", "fp32", "latent", "moody.bundle", "", 2.0)
        with pytest.raises(InferenceError, match="closed"):
            StreamClassifier(spoilt, Results(), origin=origin)


class _Breaks(SeededNoise):
    """Normals for so many frames, and then an error of its own."""

    def __init__(self, frames: int, error: type[BaseException]) -> None:
        super().__init__(0)
        self._left, self._error = frames, error

    def take(self, batch: int, num_samples: int, latent_dim: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise self._error("no noise left")
        return super().take(batch, num_samples, latent_dim)


def test_scores_that_are_not_finite_are_a_fault(tiny: TinyModel, moody: Bundle) -> None:
    class NotANumber(SeededNoise):
        bad = False

        def take(self, batch: int, num_samples: int, latent_dim: int) -> Any:
            found = super().take(batch, num_samples, latent_dim)
            return np.full_like(found, np.nan) if self.bad else found

    noise = NotANumber(0)
    with opened(moody, Results(), noise=noise, backoff=SLOW) as stream:
        noise.bad = True
        decision = stream.classify(moody_image(tiny)).decision
    assert decision.status is Status.FAULT and "not finite" in decision.reason

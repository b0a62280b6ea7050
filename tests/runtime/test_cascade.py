"""The cascade: a gate before the vote, in one bundle, with one decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flss_runtime import arms, stages
from flss_runtime.bundle import load_bundle, store_calibration
from flss_runtime.bundle_engines import BundleEngines
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import (
    Decision,
    SmoothingPolicy,
    Status,
    confidences,
    decide,
    decide_cascade,
    tally,
)
from flss_runtime.engines import open_engine
from flss_runtime.errors import BundleError, DataError, InferenceError, UsageError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.samplers import TwoGraphSampler

from .bundles import NOISE_SCALE, NUM_SAMPLES, random_images
from .cascades import (
    MIN_VOTES,
    Gate,
    cascade_entry,
    choices_of,
    expected_decisions,
    make_gate,
    mean_choices,
    open_parts,
)

if TYPE_CHECKING:
    from .conftest import TinyModel


def shown(decisions: list[Decision]) -> list[tuple[int | None, int | None, int, bool]]:
    return [(each.label, each.top_label, each.votes, each.gated) for each in decisions]


class TestRule:
    # Image 0: the gate is sure, and the mean's class has few votes. 1: it is not sure. 2: neither it nor the vote is.
    # 3: it is as sure as it has to be, and the vote would reject.
    CHOICES = np.array(
        [[1] * 7 + [2] * 3, [1] * 7 + [2] * 3, [0, 1, 2, 3, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 1, 2, 3, 1, 1]]
    )
    CONFIDENCE = np.array([0.99, 0.79, 0.1, 0.8])
    MEAN = np.array([2, 2, 1, 4])
    POLICY = SmoothingPolicy(10, 2.0, 5, min_confidence=0.8)

    def test_by_hand(self) -> None:
        found = decide_cascade(self.CHOICES, self.POLICY, self.CONFIDENCE, self.MEAN, range(4, 8))
        assert shown(found) == [(2, 2, 3, True), (1, 1, 7, False), (None, 0, 4, False), (4, 4, 0, True)]
        assert [each.vote_share for each in found] == [0.3, 0.7, 0.4, 0.0]
        assert [each.status for each in found] == [
            Status.ACCEPTED, Status.ACCEPTED, Status.LOW_VOTE, Status.ACCEPTED
        ]  # fmt: skip
        assert [each.counter for each in found] == [4, 5, 6, 7]

    def test_a_gate_that_is_never_sure_leaves_the_vote(self) -> None:
        found = decide_cascade(self.CHOICES, self.POLICY, np.zeros(4), self.MEAN, range(4))
        assert found == decide(self.CHOICES, self.POLICY, range(4))

    @given(st.data())
    def test_ungated_images_are_decided_by_the_vote_alone(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, 6))
        row = st.lists(st.integers(0, 4), min_size=8, max_size=8)
        choices = np.array(data.draw(st.lists(row, min_size=count, max_size=count)), np.int64).reshape(count, 8)
        confidence = np.array(data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
        mean = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), np.int64)
        policy = SmoothingPolicy(8, 2.0, data.draw(st.integers(0, 8)), data.draw(st.floats(0, 1)))
        found = decide_cascade(choices, policy, confidence, mean)
        for index, (one, voted) in enumerate(zip(found, decide(choices, policy), strict=True)):
            if confidence[index] >= policy.min_confidence:
                assert one.gated and one.accepted and one.label == one.top_label == mean[index]
                assert one.votes == list(choices[index]).count(mean[index]) and one.vote_share == one.votes / 8
            else:
                assert one == voted and not one.gated

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(UsageError, match="no min_confidence"):
            decide_cascade(self.CHOICES, SmoothingPolicy(10, 2.0, 5), self.CONFIDENCE, self.MEAN)
        for confidence, mean in ((self.CONFIDENCE[:3], self.MEAN), (self.CONFIDENCE, self.MEAN[:, None])):
            with pytest.raises(UsageError, match="one of each an image"):
                decide_cascade(self.CHOICES, self.POLICY, confidence, mean)
        for value in (-0.1, 1.1, float("nan")):
            with pytest.raises(UsageError, match="min_confidence"):
                SmoothingPolicy(10, 2.0, 5, value)

    def test_confidences(self) -> None:
        logits = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 2.0, 0.0], [1e4, -1e4, 0.0, 0.0]], np.float32)
        powers = np.exp([1.0, 3.0, 2.0, 0.0])
        np.testing.assert_allclose(confidences(logits), [0.25, powers[1] / powers.sum(), 1.0], rtol=1e-12)

    def test_confidences_near_one_differ(self) -> None:
        low, high = confidences(np.array([[18.0, 0.0], [20.0, 0.0]], np.float32))
        assert low < high < 1  # in float32 both are 1


class TestClassify:
    def test_is_the_cascade_of_the_paper(self, tiny: TinyModel, gate: Gate, cascade_path: Path, middle: float) -> None:
        images = random_images(tiny, 40)
        bundle = store_calibration(load_bundle(cascade_path), cascade_entry(middle))
        with open_classifier(bundle, noise=SeededNoise(7), threads=1) as classifier:
            found = classifier.classify(images)
        expected = expected_decisions(tiny, gate, images, middle, 7)
        assert shown(found) == expected
        assert [each.counter for each in found] == list(range(40))
        # The reference decides in every way that there is: both sides of the gate, and among the gated ones images that
        # the vote would have rejected or given another class.
        assert sum(gated for *_, gated in expected) == 20
        assert {label is None for label, *_, gated in expected if not gated} == {True, False}
        winners, votes = tally(choices_of(tiny, images, 7))
        gated = np.array([each.gated for each in found])
        assert (votes[gated] < MIN_VOTES).any()
        assert (winners != mean_choices(tiny, images))[gated].any()

    def test_single_frames_batches_and_floats_agree(self, tiny: TinyModel, cascade_path: Path, middle: float) -> None:
        images = random_images(tiny, 12)
        bundle = store_calibration(load_bundle(cascade_path), cascade_entry(middle))

        def classified(*calls: Any) -> list[Decision]:
            with open_classifier(bundle, noise=SeededNoise(3), threads=1) as classifier:
                return [decision for call in calls for decision in classifier.classify(call)]

        whole = classified(images)
        assert {each.gated for each in whole} == {True, False}
        assert classified(*images) == whole
        assert classified(images[:5], list(images[5:])) == whole
        assert classified(images.transpose(0, 3, 1, 2).astype(np.float32) / 255) == whole

    def test_invalid_images_take_no_noise_and_no_gate(self, tiny: TinyModel, cascade_path: Path, middle: float) -> None:
        images = random_images(tiny, 4)
        bundle = store_calibration(load_bundle(cascade_path), cascade_entry(middle))
        with open_classifier(bundle, noise=SeededNoise(3), threads=1) as classifier:
            whole = classifier.classify(images)
        with open_classifier(bundle, noise=SeededNoise(3), threads=1) as classifier:
            found = classifier.classify([images[0], np.zeros((3, 3)), *images[1:]])
        assert found[1].status is Status.INVALID_INPUT and not found[1].gated
        assert [found[0], *found[2:]] == whole

    def test_every_frame_costs_the_same(self, tiny: TinyModel, gate: Gate, middle: float) -> None:
        images = random_images(tiny, 10)
        work = []
        with open_parts(tiny, gate, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, MIN_VOTES, middle)) as classifier:
            counters = count_runs(classifier)
            classifier.classify(images[0])  # the first frame binds the graphs to their arrays
            gated = set()
            for image in images:
                before = {role: counted.runs for role, counted in counters.items()}
                gated.add(classifier.classify(image)[0].gated)
                work.append({role: counted.runs - before[role] for role, counted in counters.items()})
            assert classifier.noise.counter == 11
        assert gated == {True, False}
        assert work == [{"encoder": 1, "head": 2, "gate": 1}] * 10

    def test_without_a_gate_nothing_is_added(self, tiny: TinyModel) -> None:
        with open_parts(tiny, None, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, MIN_VOTES)) as classifier:
            counters = count_runs(classifier)
            classifier.classify(random_images(tiny, 1)[0])
            before = {role: counted.runs for role, counted in counters.items()}
            assert not classifier.classify(random_images(tiny, 1)[0])[0].gated
        assert {role: counted.runs - before[role] for role, counted in counters.items()} == {"encoder": 1, "head": 1}

    def test_mean_choices_and_gate_logits(self, tiny: TinyModel, gate: Gate) -> None:
        images = random_images(tiny, 9)
        with open_parts(tiny, gate, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5)) as classifier:
            np.testing.assert_array_equal(classifier.mean_choices(images), mean_choices(tiny, images))
            np.testing.assert_allclose(classifier.gate_logits(images), gate.logits(images), atol=1e-5)
            assert classifier.gate_logits(images[:0]).shape == (0, 5) and classifier.mean_choices(images[:0]).shape == (
                0,
            )
            assert classifier.noise.counter == 0
            with pytest.raises(DataError, match="image 1"):
                classifier.gate_logits([images[0], np.zeros((3, 3))])


class TestOpening:
    def test_gate_and_policy_go_together(self, tiny: TinyModel, gate: Gate, cascade_path: Path) -> None:
        bare = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0)
        with pytest.raises(UsageError, match="would leave the gate out"):
            open_classifier(cascade_path, policy=bare)
        with pytest.raises(UsageError, match="would leave the gate out"):
            open_parts(tiny, gate, bare)
        with pytest.raises(UsageError, match="there is no gate"):
            open_parts(tiny, None, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5))
        with (
            open_parts(tiny, None, bare) as classifier,
            pytest.raises(UsageError, match="no gate"),
        ):
            classifier.gate_logits(random_images(tiny, 1))

    def test_a_gate_of_other_classes(self, tiny: TinyModel, tmp_path: Path) -> None:
        other = make_gate(tmp_path / "other.onnx", tiny, classes=7)
        with pytest.raises(BundleError, match="number of classes: 7 and 5"):
            open_parts(tiny, other, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5))

    def test_another_graph_in_its_place(self, tiny: TinyModel, gate: Gate) -> None:
        wrong = Gate(gate.weight, tiny.encoder)
        with pytest.raises(BundleError, match="the gate graph maps"):
            open_parts(tiny, wrong, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5))

    def test_a_gate_that_is_not_finite(self, tiny: TinyModel, gate: Gate) -> None:
        class Broken(_Counted):
            def run(self, tensors: Any) -> Any:
                return {"logits": super().run(tensors)["logits"] * np.nan}

        with open_parts(tiny, gate, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5)) as classifier:
            classifier.gate = Broken(classifier.gate)
            with pytest.raises(InferenceError, match="the gate graph gave class scores that are not finite"):
                classifier.classify(random_images(tiny, 1)[0])

    def test_closing_closes_the_gate(self, tiny: TinyModel, gate: Gate) -> None:
        classifier = open_parts(tiny, gate, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0, 0.5))
        classifier.close()
        assert classifier.gate is not None
        with pytest.raises(InferenceError, match="closed"):
            classifier.gate.run({"images": np.zeros((1, 3, 8, 8), np.float32)})

    def test_a_benchmark_runs_the_gate(self, tiny: TinyModel, cascade_path: Path) -> None:
        bundle = load_bundle(cascade_path)  # not calibrated
        image = random_images(tiny, 1)[0]
        setting = arms.Setting("ort", "fp32", 1)
        arm = arms.open_arm(bundle, "n20", setting, 0)
        answer = arm.frame(image)
        arm.close()
        arms.check_answer(answer)
        assert isinstance(answer, list) and answer[0].gated
        clock = stages.StageClock()
        staged = stages.open_staged(bundle, "n20", setting, 0, clock)
        assert staged is not None
        staged.frame(image)  # binds the graphs to their arrays
        split = clock.frame(lambda: staged.frame(image))
        staged.close()
        assert {"encoder", "head", "noise", "gate"} < set(split)
        with open_engine(tiny.encoder, threads=1) as encoder, open_engine(tiny.head, threads=1) as head:
            joinable = {"encoder": _Joinable(encoder), "head": head}
            assert stages.runs_as_pair(BundleEngines(joinable, {}))
            assert not stages.runs_as_pair(BundleEngines({**joinable, "encoder": encoder}, {}))
            cascade = BundleEngines({**joinable, "gate": encoder}, {})
            assert not stages.runs_as_pair(cascade), "a cascade takes the mean between the two"


class _Joinable:
    """A real engine that says, as TensorRT's does, that it can be one with a head."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def join(self, head: Any) -> None:
        raise AssertionError("nothing is joined to find out")


def count_runs(classifier: SmoothedClassifier) -> dict[str, _Counted]:
    """Count from now on how often each graph runs."""
    sampler = classifier.sampler
    assert isinstance(sampler, TwoGraphSampler)
    counters = {"encoder": _Counted(sampler.encoder), "head": _Counted(sampler.head)}
    sampler.encoder, sampler.head = counters["encoder"], counters["head"]
    if classifier.gate is not None:
        counters["gate"] = _Counted(classifier.gate)
        classifier.gate = counters["gate"]
    return counters


class _Counted:
    """A real engine whose runs are counted."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.runs = engine, 0
        self.name, self.inputs, self.outputs, self.close = engine.name, engine.inputs, engine.outputs, engine.close

    def run(self, tensors: dict[str, npt.NDArray[Any]]) -> Any:
        self.runs += 1
        return self.engine.run(tensors)

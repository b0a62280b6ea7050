from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from flss_runtime import batches as batches_module
from flss_runtime.bundle import store_calibration
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import Decision, SmoothingPolicy, Status, decide
from flss_runtime.engines import open_engine
from flss_runtime.errors import BundleError, DataError, InferenceError, UncalibratedError, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import KeyedNoise, NoiseSource, SeededNoise, SystemNoise
from flss_runtime.opening import open_classifier
from flss_runtime.samplers import TwoGraphSampler

from .bundles import entry, write_tiny

if TYPE_CHECKING:
    from .conftest import TinyModel

Frames = npt.NDArray[np.uint8]
POLICY = SmoothingPolicy(100, 2.0, 32)


def open_tiny(
    tiny: TinyModel, policy: SmoothingPolicy = POLICY, noise: NoiseSource | None = None
) -> SmoothedClassifier:
    encoder, head = open_engine(tiny.encoder, threads=1), open_engine(tiny.head, threads=1)
    names = [f"class {number}" for number in range(tiny.num_classes)]
    sampler = TwoGraphSampler(encoder, head, tiny.num_classes)
    return SmoothedClassifier(sampler, noise or SeededNoise(0), policy, tiny.spec, names)


def expected_logits(tiny: TinyModel, frames: Frames, policy: SmoothingPolicy, seed: int = 0) -> npt.NDArray[np.float32]:
    """The method as the paper writes it, in NumPy: every noisy latent formed, then the head applied to each."""
    latent = LatentGaussian(*tiny.encode(to_nchw(frames)))
    noise = SeededNoise(seed)
    drawn = np.stack([noise.at(image, policy.num_samples, tiny.latent_dim) for image in range(len(frames))])
    return latent.sample(drawn, policy.noise_scale) @ tiny.head_weight + tiny.head_bias


def test_classify_is_the_method_of_the_paper(tiny: TinyModel, frames: Frames) -> None:
    logits = expected_logits(tiny, frames, POLICY)
    with open_tiny(tiny) as classifier:
        np.testing.assert_allclose(classifier.logits(frames), logits, atol=1e-4)
    with open_tiny(tiny) as classifier:
        decisions = classifier.classify(frames)
    assert decisions == decide(logits.argmax(axis=2), POLICY, range(7))
    assert {decision.status for decision in decisions} == {Status.ACCEPTED, Status.LOW_VOTE}


def test_batch_list_and_single_frames_agree(tiny: TinyModel, frames: Frames) -> None:
    with open_tiny(tiny) as batch, open_tiny(tiny) as one_by_one, open_tiny(tiny) as listed, open_tiny(tiny) as mixed:
        expected = batch.classify(frames)
        assert [one_by_one.classify(frame)[0] for frame in frames] == expected
        assert listed.classify(list(frames)) == expected
        floats = to_nchw(frames)
        assert mixed.classify([floats[0], frames[1], *floats[2:]]) == expected


def test_float_frames_give_what_byte_frames_give(tiny: TinyModel, frames: Frames) -> None:
    with open_tiny(tiny) as bytes_first, open_tiny(tiny) as floats_first:
        floats = to_nchw(frames)
        assert bytes_first.classify(frames[0]) == floats_first.classify(floats[0])
        assert bytes_first.classify(frames) == floats_first.classify(floats)


def test_inputs_are_not_written_to(tiny: TinyModel, frames: Frames) -> None:
    floats = to_nchw(frames)
    before, floats_before = frames.copy(), floats.copy()
    with open_tiny(tiny) as classifier:
        for images in (frames, floats, frames[0], floats[0]):
            images.flags.writeable = False
            classifier.classify(images)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(floats, floats_before)


def test_chunks_change_nothing(tiny: TinyModel, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    many = np.concatenate([frames] * 4)
    with open_tiny(tiny) as classifier:
        expected, latent = classifier.vote(many), classifier.encode(many)
    for name, value in {"MAX_BATCH": 5, "_CHUNK_BYTES": 4 * 100 * 16 * 3, "MAX_INPUT_BYTES": 4 * 3 * 64 * 2}.items():
        with monkeypatch.context() as patch, open_tiny(tiny) as classifier:
            patch.setattr(batches_module, name, value)
            np.testing.assert_array_equal(classifier.vote(many), expected)
            np.testing.assert_allclose(classifier.encode(many).mean, latent.mean, atol=1e-6)


def test_noise_of_a_chunk_stays_below_64_mib(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    policy = SmoothingPolicy(20_000, 1.0)
    noise = SeededNoise(0)
    take = noise.take

    def recording(batch: int, num_samples: int, latent_dim: int) -> npt.NDArray[np.float32]:
        taken = take(batch, num_samples, latent_dim)
        sizes.append(taken.nbytes)
        return taken

    monkeypatch.setattr(noise, "take", recording)
    with open_tiny(tiny, policy, noise) as classifier:
        assert classifier.vote(np.zeros((60, 8, 8, 3), np.uint8)).shape == (60, 20_000)
    assert len(sizes) == 2 and max(sizes) <= 64 * 2**20


def test_bad_images_get_their_own_decision_and_no_noise(tiny: TinyModel, frames: Frames) -> None:
    bad: list[Any] = [np.full((3, 8, 8), np.nan, np.float32), np.zeros((9, 8, 3), np.uint8), None, "frame.png"]
    with open_tiny(tiny) as clean, open_tiny(tiny) as classifier:
        expected = clean.classify(frames[:3])
        decisions = classifier.classify([bad[0], frames[0], bad[1], frames[1], frames[2], bad[2], bad[3]])
        assert [decisions[number] for number in (1, 3, 4)] == expected
        for number, problem in {0: "NaN", 2: "shape", 5: "NoneType", 6: "str"}.items():
            decision = decisions[number]
            assert decision.status is Status.INVALID_INPUT
            assert problem in decision.reason
            assert (decision.label, decision.top_label, decision.votes, decision.counter) == (None, None, 0, None)
        assert classifier.noise.counter == 3


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8)),
        np.full((3, 8, 8), 2, np.float32),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
        np.array(1),
        None,
    ],
)
def test_a_single_bad_image_is_a_decision_too(tiny: TinyModel, images: Any) -> None:
    with open_tiny(tiny) as classifier:
        (decision,) = classifier.classify(images)
        assert decision.status is Status.INVALID_INPUT and decision.reason
        with pytest.raises(DataError, match="image 0 cannot be classified"):
            classifier.vote(images)


def test_a_wrongly_shaped_batch_rejects_each_image(tiny: TinyModel) -> None:
    with open_tiny(tiny) as classifier:
        decisions = classifier.classify(np.zeros((3, 9, 9, 3), np.uint8))
    assert [decision.status for decision in decisions] == [Status.INVALID_INPUT] * 3


def test_no_image_is_no_decision(tiny: TinyModel) -> None:
    with open_tiny(tiny) as classifier:
        assert classifier.classify([]) == []
        assert classifier.classify(np.zeros((0, 8, 8, 3), np.uint8)) == []
        assert classifier.vote([]).shape == (0, 100)
        assert classifier.logits([]).shape == (0, 100, 5)
        with pytest.raises(DataError, match="no image"):
            classifier.encode([])


def test_encode_takes_no_noise(tiny: TinyModel, frames: Frames) -> None:
    with open_tiny(tiny) as classifier:
        latent = classifier.encode(frames)
        assert classifier.noise.counter == 0
    mean, std = tiny.encode(to_nchw(frames))
    np.testing.assert_allclose(latent.mean, mean, atol=1e-5)
    np.testing.assert_allclose(latent.std, std, rtol=1e-5)


def test_the_counter_of_a_decision_replays_it(tiny: TinyModel, frames: Frames) -> None:
    key = 2**127 + 12345
    with open_tiny(tiny, noise=KeyedNoise(key, 10**9)) as classifier:
        run = [decision for frame in frames for decision in classifier.classify(frame)]
    for frame, decision in zip(frames, run, strict=True):
        assert decision.counter is not None
        with open_tiny(tiny, noise=KeyedNoise(key, decision.counter)) as classifier:
            assert classifier.classify(frame) == [decision]


def test_zero_noise_is_the_mean_path(tiny: TinyModel, frames: Frames) -> None:
    mean, _ = tiny.encode(to_nchw(frames))
    labels = (mean @ tiny.head_weight + tiny.head_bias).argmax(axis=1).tolist()
    with open_tiny(tiny, SmoothingPolicy(10, 0.0, 10)) as classifier:
        decisions = classifier.classify(frames)
    assert decisions == [Decision(label, label, 10, 1.0, Status.ACCEPTED, n) for n, label in enumerate(labels)]


def test_votes_follow_the_exact_gaussian_tail(make_model: Callable[..., TinyModel]) -> None:
    # With two classes and a linear head, P(class 1) = Phi((m1 - m0) / (s * |std * (w1 - w0)|)) exactly.
    model = make_model(size=4, latent_dim=8, num_classes=2, seed=5)
    frames = np.random.default_rng(2).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    samples = 40_000
    with open_tiny(model, SmoothingPolicy(samples, 0.5)) as classifier:
        share = classifier.vote(frames).mean(axis=1)
    mean, std = model.encode(to_nchw(frames))
    direction = (model.head_weight[:, 1] - model.head_weight[:, 0]).astype(np.float64)
    centre = mean @ direction + float(model.head_bias[1] - model.head_bias[0])
    exact = [
        0.5 * math.erfc(-m / s / math.sqrt(2))
        for m, s in zip(centre, 0.5 * np.sqrt((std**2) @ direction**2), strict=True)
    ]
    tolerance = 5 * np.sqrt(np.array(exact) * (1 - np.array(exact)) / samples) + 1e-6
    assert (np.abs(share - exact) < tolerance).all()
    assert np.ptp(exact) > 0.2  # the frames cover something


def test_values_that_are_not_finite_are_a_fault(tiny: TinyModel, frames: Frames, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tiny.head)
    bias = next(weight for weight in model.graph.initializer if weight.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0, 0, 0], np.float32), "bias"))
    onnx.save(model, tmp_path / "head.onnx")
    encoder, head = open_engine(tiny.encoder, threads=1), open_engine(tmp_path / "head.onnx", threads=1)
    names = ["a", "b", "c", "d", "e"]
    with (
        SmoothedClassifier(TwoGraphSampler(encoder, head, 5), SeededNoise(0), POLICY, tiny.spec, names) as classifier,
        pytest.raises(InferenceError, match="not finite"),
    ):
        classifier.classify(frames[0])


def test_a_failing_engine_is_an_inference_error(tiny: TinyModel, frames: Frames) -> None:
    classifier = open_tiny(tiny)
    classifier.close()
    with pytest.raises(InferenceError, match="closed") as caught:
        classifier.classify(frames[0])
    assert caught.value.exit_code == 4
    assert classifier.noise.counter == 0  # nothing was spent


def test_graphs_that_are_no_pair_are_refused(tiny: TinyModel, make_model: Callable[..., TinyModel]) -> None:
    encoder, head = open_engine(tiny.encoder, threads=1), open_engine(tiny.head, threads=1)
    other = open_engine(make_model(latent_dim=12).head, threads=1)
    with encoder, head, other:
        with pytest.raises(BundleError, match="the encoder graph maps"):
            TwoGraphSampler(head, encoder, 5)
        with pytest.raises(BundleError, match="latent dimensions: 16 and 12"):
            TwoGraphSampler(encoder, other, 5)
        with pytest.raises(BundleError, match="classes: 5 and 3"):
            TwoGraphSampler(encoder, head, 3)


def test_open_classifier_takes_the_calibrated_policy(tiny: TinyModel, frames: Frames, tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
    with pytest.raises(UncalibratedError) as caught:
        open_classifier(bundle)
    assert "calibrate" in caught.value.fix
    bundle = store_calibration(bundle, entry())
    for source in (bundle, bundle.path, str(bundle.path)):
        with open_classifier(source, noise=SeededNoise(0), threads=1) as classifier:
            assert classifier.policy == SmoothingPolicy(40, 2.0, 17)
            assert classifier.class_names == bundle.class_names
            logits = expected_logits(tiny, frames, classifier.policy)
            assert classifier.classify(frames) == decide(logits.argmax(axis=2), classifier.policy, range(7))
    with pytest.raises(UncalibratedError):
        open_classifier(bundle, num_samples=7)


def test_open_classifier_defaults(tiny: TinyModel, tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
    with open_classifier(bundle, policy=POLICY, threads=2) as classifier:
        assert isinstance(classifier.noise, SystemNoise)
        assert classifier.policy == POLICY
        assert classifier.sampler.engines["encoder"].threads == 2  # type: ignore[attr-defined]
        assert classifier.sampler.engines["head"].threads == 1  # type: ignore[attr-defined]
    open_classifier(bundle, policy=POLICY, num_samples=100).close()
    with pytest.raises(UsageError, match="num_samples is 7, but the policy is for 100"):
        open_classifier(bundle, policy=POLICY, num_samples=7)
    with pytest.raises(UsageError, match="there is no engine"):
        open_classifier(bundle, "nonsense", policy=POLICY)
    with pytest.raises(BundleError):
        open_classifier(tmp_path / "absent.bundle")

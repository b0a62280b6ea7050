"""Every way to votes gives the same votes, frame by frame and in batches, and a frame leaves no garbage behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import open_engine
from flss_runtime.engines.ort_binding import OrtResident
from flss_runtime.engines.resident import bind
from flss_runtime.errors import BundleError, InferenceError, UsageError
from flss_runtime.noise import KeyedNoise, SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.samplers import FusedSampler, LogitSampler, TwoGraphSampler, make_sampler

from .bundles import further, random_images, write_tiny
from .test_conformance import ABSENT, images_of

if TYPE_CHECKING:
    from pathlib import Path

    from flss_runtime.bundle import Bundle
    from flss_runtime.classifier import SmoothedClassifier

    from .conftest import TinyModel

ON_HOST = [name for name in ("ort", "openvino") if name not in ABSENT]
POLICY = SmoothingPolicy(50, 2.0, 0)
_OBJECTS = 7168  # bytes that the Python objects and K x K arrays of a frame take
# Sampling and fused, as `open_classifier` takes them.
WAYS: dict[str, dict[str, Any]] = {
    "two graphs": {"fused": False},
    "fused": {"fused": True},
    "logit": {"sampling": "logit"},
    "deterministic": {"sampling": "deterministic"},
}


@pytest.fixture(scope="module")
def bundle(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny(tmp_path_factory.mktemp("samplers") / "all.bundle", tiny, **further(tiny, "fused", "logit"))


@contextmanager
def opened(bundle: Bundle, way: str, engine: str = "ort", **options: Any) -> Iterator[SmoothedClassifier]:
    policy = options.pop("policy", POLICY)
    with open_classifier(
        bundle, engine, policy=policy, noise=SeededNoise(0), threads=1, **WAYS[way], **options
    ) as classifier:
        yield classifier


class TestBinding:
    @pytest.mark.parametrize("name", ON_HOST)
    def test_a_bound_graph_reads_and_writes_in_place(self, tiny: TinyModel, name: str) -> None:
        first, second = images_of(tiny, 1)["images"], images_of(tiny, 2)["images"][1:].copy()
        with open_engine(tiny.encoder, name, threads=1) as engine:
            bound = bind(engine, {"images": first.copy()})
            mean = bound.outputs["mean"]
            np.testing.assert_allclose(mean, tiny.encode(first)[0], rtol=1e-4, atol=1e-5)
            bound.inputs["images"][:] = second
            bound.run()
            assert bound.outputs["mean"] is mean
            np.testing.assert_allclose(mean, tiny.encode(second)[0], rtol=1e-4, atol=1e-5)
            assert not np.allclose(mean, tiny.encode(first)[0], rtol=1e-2)

    @pytest.mark.parametrize("name", ON_HOST)
    def test_a_graph_is_bound_to_the_outputs_of_another(self, tiny: TinyModel, name: str) -> None:
        images = images_of(tiny, 1)["images"]
        with open_engine(tiny.encoder, name, threads=1) as one, open_engine(tiny.head, name, threads=1) as other:
            encoder = bind(one, {"images": images})
            noise = np.zeros((1, 3, tiny.latent_dim), np.float32)
            head = bind(other, {**encoder.outputs, "noise": noise, "noise_scale": np.ones(1, np.float32)})
            images *= 0.5
            encoder.run()
            head.run()
            expected = tiny.encode(images)[0] @ tiny.head_weight + tiny.head_bias
        np.testing.assert_allclose(head.outputs["logits"][0], np.tile(expected, (3, 1)), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("name", ON_HOST)
    def test_what_cannot_be_bound_is_refused(self, tiny: TinyModel, name: str) -> None:
        images = images_of(tiny, 1)["images"]
        wide = np.zeros((*images.shape[:3], 2 * images.shape[3]), np.float32)
        still = images.copy()
        still.flags.writeable = False
        with open_engine(tiny.encoder, name, threads=1) as engine:
            for wrong in (wide[..., ::2], still):
                with pytest.raises(InferenceError, match="read-only or not contiguous"):
                    bind(engine, {"images": wrong})
            with pytest.raises(InferenceError, match="failed: it was given"):
                bind(engine, {"images": images.astype(np.float64)})
        with pytest.raises(InferenceError, match="closed"):
            bind(engine, {"images": images})

    def test_an_engine_that_cannot_be_bound_is_copied_to(self, tiny: TinyModel) -> None:
        with open_engine(tiny.encoder, threads=1) as engine:
            images = images_of(tiny, 1)["images"]
            copied = bind(_Plain(engine), {"images": images})
            mean = copied.outputs["mean"]
            images *= 0.5
            copied.run()
            assert copied.outputs["mean"] is mean
            np.testing.assert_allclose(mean, tiny.encode(images)[0], rtol=1e-4, atol=1e-5)


class TestSameVotes:
    @pytest.mark.parametrize("name", ON_HOST)
    @pytest.mark.parametrize("way", WAYS)
    def test_frame_by_frame_as_in_a_batch(self, tiny: TinyModel, bundle: Bundle, way: str, name: str) -> None:
        images = random_images(tiny, 9)
        with opened(bundle, way, name) as classifier:
            batch = classifier.vote(images)
            classifier.noise = SeededNoise(0)
            frames = [classifier.classify(image)[0] for image in images]
        assert [frame.top_label for frame in frames] == [np.bincount(row).argmax() for row in batch]
        assert [frame.votes for frame in frames] == [np.bincount(row).max() for row in batch]
        assert len({frame.top_label for frame in frames}) > 1

    @pytest.mark.parametrize("name", ON_HOST)
    @pytest.mark.parametrize("way", ["two graphs", "fused"])
    def test_a_large_window_is_read_where_it_lies(
        self, tiny: TinyModel, bundle: Bundle, way: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, points = random_images(tiny, 20), list[str]()
        if name == "ort":
            point = OrtResident.point
            monkeypatch.setattr(OrtResident, "point", lambda *given: (points.append(given[1]), point(*given))[1])
        policy = SmoothingPolicy(2**18 // tiny.latent_dim + 1, 2.0)
        with opened(bundle, way, name, policy=policy) as classifier:
            batch = np.concatenate([classifier.vote(np.stack([image, image]))[:1] for image in images])
            frames = []
            for number, image in enumerate(images):
                classifier.noise.counter = 2 * number  # type: ignore[misc]
                frames.append(classifier.classify(image)[0])
        assert [frame.votes for frame in frames] == [np.bincount(row).max() for row in batch]
        assert len({frame.votes for frame in frames}) > 10
        assert name != "ort" or (points == ["noise"] * len(points) and len(points) >= 19)

    @pytest.mark.parametrize("name", ON_HOST)
    def test_fused_as_two_graphs(self, tiny: TinyModel, bundle: Bundle, name: str) -> None:
        images = random_images(tiny, 30)
        found = {}
        for way in ("two graphs", "fused"):
            with opened(bundle, way, name) as classifier:
                found[way] = [classifier.classify(image)[0] for image in images], classifier.vote(images)
        frames, votes = zip(*found.values(), strict=True)
        assert frames[0] == frames[1]
        np.testing.assert_array_equal(*votes)

    def test_deterministic_votes_do_not_change(self, tiny: TinyModel, bundle: Bundle) -> None:
        images = random_images(tiny, 5)
        with opened(bundle, "deterministic") as classifier:
            first = [classifier.classify(image)[0] for image in images]
            assert [classifier.classify(image)[0] for image in images] == first
            assert classifier.noise.counter == 0 and first[0].counter is None
        with opened(bundle, "logit") as classifier:
            random = [{classifier.classify(image)[0].votes for _ in range(20)} for image in images]
        assert max(map(len, random)) > 1

    @pytest.mark.parametrize("way", WAYS)
    def test_mean_choices_are_those_of_no_noise(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        images = random_images(tiny, 6)
        with opened(bundle, "two graphs", policy=SmoothingPolicy(1, 0.0)) as still:
            expected = still.vote(images)[:, 0]
        with opened(bundle, way) as classifier:
            np.testing.assert_array_equal(classifier.mean_choices(images), expected)
            np.testing.assert_array_equal(classifier.mean_choices(images[:1]), expected[:1])

    @pytest.mark.parametrize("way", WAYS)
    def test_results_of_a_frame_outlive_the_next(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        one, other = random_images(tiny, 2)
        with opened(bundle, way) as classifier:
            votes, logits = classifier.vote(one), classifier.logits(one)
            kept = votes.copy(), logits.copy()
            classifier.classify(other)
            np.testing.assert_array_equal(votes, kept[0])
            np.testing.assert_array_equal(logits, kept[1])

    @pytest.mark.parametrize("way", WAYS)
    def test_a_float_frame_stays_as_it_is(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        frames = (random_images(tiny, 3) / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)
        kept = frames.copy()
        with opened(bundle, way) as classifier:
            for frame in frames:
                classifier.classify(frame)
        np.testing.assert_array_equal(frames, kept)

    @pytest.mark.parametrize("way", WAYS)
    def test_the_number_of_samples_may_change(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        image = random_images(tiny, 1)[0]
        with opened(bundle, way) as classifier:
            for samples in (50, 7, 200):
                classifier.policy = SmoothingPolicy(samples, 2.0)
                assert classifier.vote(image).shape == (1, samples)

    @pytest.mark.parametrize("name", ON_HOST)
    @pytest.mark.parametrize("way", WAYS)
    def test_going_back_and_forth_between_numbers_of_samples(
        self, tiny: TinyModel, bundle: Bundle, way: str, name: str
    ) -> None:
        images, numbers = random_images(tiny, 24), [50, 7, 50, 7, 3, 20, 11, 50] * 3  # more than are kept
        expected = []
        for counter, (image, samples) in enumerate(zip(images, numbers, strict=True)):
            with opened(bundle, way, name, policy=SmoothingPolicy(samples, 2.0)) as fresh:
                fresh.noise = KeyedNoise(0, counter)
                expected.append(fresh.vote(image[None]))
        with opened(bundle, way, name) as classifier:
            for image, samples, votes in zip(images, numbers, expected, strict=True):
                classifier.policy = SmoothingPolicy(samples, 2.0)
                np.testing.assert_array_equal(classifier.vote(image[None]), votes)


class TestSamplersAlone:
    @pytest.mark.parametrize("way", WAYS)
    def test_they_leave_the_callers_images_as_they_are(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        first, second = images_of(tiny, 1, 1)["images"], images_of(tiny, 1, 2)["images"]
        first.flags.writeable = False  # cannot be bound, and need not be
        kept = second.copy()
        with opened(bundle, way) as classifier:
            sampler = classifier.sampler
            for images in (first, second, first):
                sampler.sample(images, SeededNoise(0), 20, 2.0)
        np.testing.assert_array_equal(second, kept)


class TestOpening:
    def test_the_fused_graph_is_taken_where_it_is(self, tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
        bare = write_tiny(tmp_path / "bare.bundle", tiny)
        kinds = {}
        for name, source in (("with", bundle), ("without", bare)):
            with open_classifier(source, policy=POLICY, threads=1) as classifier:
                kinds[name] = type(classifier.sampler), list(classifier.engine_facts()["precision"])
        assert kinds == {"with": (FusedSampler, ["fused"]), "without": (TwoGraphSampler, ["encoder", "head"])}
        with pytest.raises(BundleError, match="has no 'fused' graph") as caught:
            open_classifier(bare, policy=POLICY, fused=True)
        assert "--fused" in caught.value.fix
        with pytest.raises(BundleError, match="has no 'logit' graph") as caught:
            open_classifier(bare, policy=POLICY, sampling="deterministic")
        assert "--sampling logit" in caught.value.fix

    def test_what_makes_no_sense_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match="no sampling 'latnt'"):
            open_classifier(bundle, policy=POLICY, sampling="latnt")
        with pytest.raises(UsageError, match="fused graph is for latent sampling"):
            open_classifier(bundle, policy=POLICY, sampling="logit", fused=True)

    @pytest.mark.parametrize("way", ["fused", "logit", "deterministic"])
    def test_without_an_encoder_there_is_no_latent(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        with opened(bundle, way) as classifier, pytest.raises(UsageError, match="not the latent Gaussian"):
            classifier.encode(random_images(tiny, 1))

    @pytest.mark.parametrize("way", WAYS)
    def test_facts_name_the_sampling(self, bundle: Bundle, way: str) -> None:
        with opened(bundle, way) as classifier:
            assert classifier.engine_facts()["sampling"] == WAYS[way].get("sampling", "latent")

    def test_graphs_of_another_role_are_refused(self, tiny: TinyModel) -> None:
        with open_engine(tiny.encoder, threads=1) as engine:
            for make in (lambda: FusedSampler(engine, 16, 5), lambda: LogitSampler(engine, 5)):
                with pytest.raises(BundleError, match="graph maps"):
                    make()

    @pytest.mark.parametrize("way", WAYS)
    def test_closing_closes_the_engines(self, tiny: TinyModel, bundle: Bundle, way: str) -> None:
        image = random_images(tiny, 1)[0]
        with opened(bundle, way) as classifier:
            classifier.classify(image)
        with pytest.raises(InferenceError, match="closed"):
            classifier.classify(image)


@pytest.mark.skipif("ort" not in ON_HOST, reason="ONNX Runtime's way is what is promised")
@pytest.mark.parametrize("way", WAYS)
def test_a_frame_allocates_no_array(tiny: TinyModel, bundle: Bundle, way: str) -> None:
    """No array above 1 KiB a frame, but for the noise bank: every eighth frame renews a chunk of 1024 normals."""
    image = random_images(tiny, 1)[0]
    ordinary = {}
    for num_samples in (100, 2000):
        with opened(bundle, way, policy=SmoothingPolicy(num_samples, 2.0)) as classifier:
            peaks = _peaks(lambda opened=classifier: opened.classify(image), 16)  # type: ignore[misc]
        renewals = [number for number, peak in enumerate(peaks) if peak > _OBJECTS]
        assert len(renewals) <= (0 if way == "deterministic" else 2), peaks
        assert len({number % 8 for number in renewals}) <= 1
        ordinary[num_samples] = sorted(peaks)[8]
    # Decision, list and views are there whatever N; an array of choices would be 15 KB larger at the second one.
    assert abs(ordinary[2000] - ordinary[100]) < 1024, ordinary
    assert min(_peaks(lambda: np.empty(_OBJECTS + 512, np.uint8), 3)) > _OBJECTS, "an array would not be seen"


@pytest.mark.skipif("ort" not in ON_HOST, reason="ONNX Runtime's way is what is promised")
@pytest.mark.parametrize("way", WAYS)
def test_changing_the_number_of_samples_allocates_no_array(tiny: TinyModel, bundle: Bundle, way: str) -> None:
    image, policies = random_images(tiny, 1)[0], [SmoothingPolicy(4000, 2.0), SmoothingPolicy(2000, 2.0)]
    with opened(bundle, way, policy=policies[0]) as classifier:

        def change() -> None:
            policies.reverse()
            classifier.policy = policies[0]
            classifier.classify(image)

        peaks = sorted(_peaks(change, 16))
    # What remains is the noise source's list of 256 offsets; the smaller number's choices alone would be 16,000 bytes.
    assert peaks[8] < 16_000, peaks


def _peaks(call: Callable[[], object], times: int) -> list[int]:
    """Return by how many bytes each call raised the memory in use at its height, of Python and NumPy together."""
    for _ in range(9):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        call()  # the first traced call pays for what tracing itself keeps
        found = []
        for _ in range(times):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            found.append(tracemalloc.get_traced_memory()[1] - before)
        return found
    finally:
        tracemalloc.stop()


def test_make_sampler_takes_what_was_opened(tiny: TinyModel) -> None:
    with open_engine(tiny.logit, threads=1) as engine:
        for sampling, noise_dim in (("logit", tiny.num_classes), ("deterministic", 0)):
            sampler = make_sampler({"logit": engine}, sampling, tiny.latent_dim, tiny.num_classes)
            assert (sampler.sampling, sampler.noise_dim) == (sampling, noise_dim)


class _Plain:
    """A real engine without the method that binds it, as a wrapper has none."""

    def __init__(self, engine: Any) -> None:
        self.run: Callable[[dict[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]] = engine.run

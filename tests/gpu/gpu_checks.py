"""What only a GPU can show, as a script for any Python with numpy and an engine's wheels: no torch, onnx or pytest.

python tests/gpu/gpu_checks.py BUNDLE [--precision fp32] [-o result.json]

Checks the TensorRT engine against the bundle's own golden and reference data and against itself: batches, samples,
noise, CUDA graph, cache, memory, threads. Then times it. Exit 1 if a check fails. ONNX Runtime on CUDA is verified too,
where it is installed. Some two minutes with TensorRT-RTX, up to eight with TensorRT, most of them its builds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engine_cache import CACHE_VARIABLE, EngineCache
from flss_runtime.engines import cuda, open_engine
from flss_runtime.engines.trt_pair import TrtPair
from flss_runtime.environment import describe_environment
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import EngineUnavailable, InferenceError
from flss_runtime.noise import NoiseSource, SeededNoise
from flss_runtime.opening import open_classifier

BATCHES, SAMPLES = (1, 2, 7, 128), (1, 100, 256)
OTHER_ENGINES = ("ort:cuda", "ort:tensorrt", "ort:tensorrt-rtx")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What every check gets."""

    bundle: Bundle
    precision: str

    @property
    def tolerance(self) -> float:
        """Largest difference of logits between two ways through the same graphs, relative to the largest logit."""
        return 1e-4 if self.precision == "fp32" else 2e-2

    @contextmanager
    def opened(self, num_samples: int = 100, noise: NoiseSource | None = None) -> Iterator[SmoothedClassifier]:
        gate = 0.0 if self.bundle.has_gate else None
        policy = SmoothingPolicy(num_samples, self.bundle.noise_scale, 0, gate)
        options: dict[str, Any] = {"policy": policy, "noise": noise or SeededNoise(3)}
        with open_classifier(self.bundle, "trt", precision=self.precision, **options) as classifier:
            yield classifier

    def images(self, count: int, seed: int = 0) -> Any:
        size = self.bundle.input.height, self.bundle.input.width
        return np.random.default_rng(seed).random((count, 3, *size), np.float32)

    def graph_by_graph(self, classifier: SmoothedClassifier, images: Any, noise: Any, scale: float) -> Any:
        """Run encoder and head as two engines, with everything through the host between them."""
        latent = classifier.encoder.run({"images": images})
        return classifier.head.run({**latent, "noise": noise, "noise_scale": np.array([scale], np.float32)})


def same_votes(found: Any, expected: Any, tolerance: float) -> float:
    """Require logits to agree, and choices wherever the two best classes are not within the tolerance of each other."""
    scale = max(1.0, float(np.abs(expected["logits"]).max()))
    difference = float(np.abs(found["logits"] - expected["logits"]).max()) / scale
    assert difference <= tolerance, f"logits differ by {difference:.2e} of their scale, allowed {tolerance:.0e}"
    best = np.sort(expected["logits"], axis=2)
    clear = best[..., -1] - best[..., -2] > 2 * tolerance * scale
    changed = (found["choices"] != expected["choices"]) & clear
    assert not changed.any(), f"{changed.sum()} clear choices changed"
    return difference


def check_verdict(case: Case) -> str:
    """The equivalence gate passes on golden and reference images, in the precision that was asked for."""
    report = verify_bundle(case.bundle, "trt", precision=case.precision)
    assert not report.failures, "; ".join(report.failures)
    assert report.facts["precision"]["encoder"] == case.precision, report.facts
    return f"{report.verdict}, {report.facts['device']}, {report.facts['library']}, {report.facts['precision']}"


def check_sizes(case: Case) -> str:
    """All batches and numbers of samples give what each image gives alone, and the pair what the two graphs give."""
    largest = 0.0
    with case.opened() as classifier:
        limit = classifier.encoder.plan.largest[1]["images"][0]  # type: ignore[attr-defined]
        for batch in BATCHES:
            images = case.images(min(batch, limit))
            for samples in SAMPLES:
                shape = (len(images), samples, case.bundle.latent_dim)
                noise = np.random.default_rng(samples).standard_normal(shape).astype(np.float32)
                whole = case.graph_by_graph(classifier, images, noise, 2.0)
                one = case.graph_by_graph(classifier, images[-1:], noise[-1:], 2.0)
                last = {name: value[-1:] for name, value in whole.items()}
                largest = max(largest, same_votes(last, one, case.tolerance))
                pair, source = classifier._pair, SeededNoise(samples)
                assert pair is not None
                logits, choices = pair.sample(images, source, samples, 2.0)
                taken = SeededNoise(samples).take(*shape)
                expected = case.graph_by_graph(classifier, images, taken, 2.0)
                largest = max(largest, same_votes({"logits": logits, "choices": choices}, expected, case.tolerance))
                assert source.counter == len(images)
    return f"largest difference {largest:.1e} of the logits' scale"


def check_broadcast(case: Case) -> str:
    """A noise of batch 1 serves every image, and noise scale 0 gives the class of the mean."""
    with case.opened() as classifier:
        images = case.images(3)
        noise = np.random.default_rng(1).standard_normal((1, 100, case.bundle.latent_dim)).astype(np.float32)
        shared = case.graph_by_graph(classifier, images, noise, 2.0)
        each = case.graph_by_graph(classifier, images, np.repeat(noise, 3, axis=0), 2.0)
        same_votes(shared, each, case.tolerance)
        still = case.graph_by_graph(classifier, images, noise, 0.0)
        assert (still["choices"] == still["choices"][:, :1]).all()
    return "ok"


def check_noise_bank(case: Case) -> str:
    """The GPU's copy of the noise bank follows the host's over refreshes, jumps and other sizes."""
    with case.opened() as classifier:
        pair = classifier._pair
        assert pair is not None
        images, source, other = case.images(1), SeededNoise(9), SeededNoise(9)
        counters = [*range(40), 8 * 1024 - 4, *range(8 * 1024 - 3, 8 * 1024 + 12), 10**9, 3]
        for counter in counters:
            source.counter = other.counter = counter
            logits, choices = pair.sample(images, source, 100, 2.0)
            noise = other.take(1, 100, case.bundle.latent_dim)
            expected = case.graph_by_graph(classifier, images, noise, 2.0)
            same_votes({"logits": logits, "choices": choices}, expected, case.tolerance)
    return f"{len(counters)} frames"


def check_graph(case: Case) -> str:
    """Frames are one launch of a captured graph, give the same bits each time, and own what they return."""
    with case.opened() as classifier:
        pair = classifier._pair
        assert isinstance(pair, TrtPair)
        first = pair.sample(case.images(1), SeededNoise(1), 100, 2.0)
        kept = first[0].copy()
        assert pair.is_captured(1, 100), "no CUDA graph: see the warnings"
        pair.sample(case.images(1, seed=5), SeededNoise(2), 100, 2.0)
        np.testing.assert_array_equal(first[0], kept)
        again = pair.sample(case.images(1), SeededNoise(1), 100, 2.0)
        np.testing.assert_array_equal(again[0], kept)
        for batch in (1, 2, 3, 4, 5, 6, 1):  # more shapes than are kept
            assert pair.sample(case.images(batch), SeededNoise(1), 10, 2.0)[1].shape == (batch, 10)
    return "captured"


def check_refusals(case: Case) -> str:
    """Wrong tensors are InferenceErrors, the engine survives them, and a closed one says so."""
    with case.opened() as classifier:
        encoder, good = classifier.encoder, case.images(1)
        bad = [{}, {"image": good}, {"images": good.astype(np.float64)}, {"images": good[:, :2]}, {"images": good[0]}]
        for tensors in [*bad, {"images": np.repeat(good, 129, axis=0)}]:
            try:
                encoder.run(tensors)
            except InferenceError:
                continue
            raise AssertionError(f"took {[(name, value.shape) for name, value in tensors.items()]}")
        assert encoder.run({"images": good})["mean"].shape == (1, case.bundle.latent_dim)
    try:
        encoder.run({"images": good})
    except InferenceError:
        return "ok"
    raise AssertionError("a closed engine ran")


def check_cache(case: Case) -> str:
    """The second start builds nothing and is faster; a damaged engine is rebuilt."""
    cache = EngineCache()
    stamps = {entry.folder: entry.sha256 for entry in cache.entries()}
    started = time.perf_counter()
    with case.opened() as classifier:
        classifier.vote(case.images(1))
    warm = time.perf_counter() - started
    assert {entry.folder: entry.sha256 for entry in cache.entries()} == stamps, "something was built again"
    graph = case.bundle.graph("head")
    entry = next(entry for entry in cache.entries() if entry.graph_name == graph.name)
    content = (entry.folder / "engine.bin").read_bytes()
    (entry.folder / "engine.bin").write_bytes(content[: len(content) // 2])
    with open_engine(graph, "trt"):
        pass
    repaired = cache.entry(entry.key)
    assert repaired is not None and repaired.load() is not None
    return f"warm start {warm:.2f} s, {len(stamps)} engines"


def check_memory(case: Case) -> str:
    """Opening and closing leaks no memory of the GPU."""
    left = []
    for _ in range(5):
        with case.opened() as classifier:
            classifier.vote(case.images(2))
        left.append(cuda.runtime().cudaMemGetInfo()[1] / MIB)
    lost = left[1] - left[-1]
    assert lost < 32, f"{lost:.0f} MiB lost in three rounds"
    return f"{lost:.1f} MiB lost in three rounds"


def check_threads(case: Case) -> str:
    """Two classifiers in two threads do not disturb each other."""
    expected: dict[int, Any] = {}
    for seed in (1, 2):
        with case.opened(noise=SeededNoise(seed)) as classifier:
            expected[seed] = [classifier.vote(case.images(1, frame)) for frame in range(30)]
    failures: list[str] = []

    def work(seed: int) -> None:
        try:
            with case.opened(noise=SeededNoise(seed)) as classifier:
                for frame in range(30):
                    np.testing.assert_array_equal(classifier.vote(case.images(1, frame)), expected[seed][frame])
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    return "ok"


def check_other_engines(case: Case) -> str:
    """What ONNX Runtime has for GPUs is verified too, and named where it is absent."""
    found = []
    for engine in OTHER_ENGINES:
        try:
            report = verify_bundle(case.bundle, engine, precision=case.precision)
        except EngineUnavailable as error:
            found.append(f"{engine}: absent ({error.problem.splitlines()[0][:100]})")
            continue
        assert not report.failures, f"{engine}: {'; '.join(report.failures)}"
        found.append(f"{engine}: {report.verdict}, {report.facts['device']}, {report.facts['precision']}")
    return "; ".join(found)


def check_latency(case: Case) -> str:
    """No limit, only figures: one frame with 100 samples as one graph, as two, and the encoder alone."""

    def median_us(run: Callable[[], Any], rounds: int = 300) -> float:
        times = []
        for _ in range(rounds + 50):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return float(np.median(times[50:])) * 1e6

    with case.opened() as classifier:
        pair, images = classifier._pair, case.images(1)
        assert pair is not None
        noise = SeededNoise(1).take(1, 100, case.bundle.latent_dim)
        figures = {
            "pair, N=100": median_us(lambda: pair.sample(images, classifier.noise, 100, 2.0)),
            "pair, N=1": median_us(lambda: pair.sample(images, classifier.noise, 1, 2.0)),
            "two graphs, N=100": median_us(lambda: case.graph_by_graph(classifier, images, noise, 2.0)),
            "encoder alone": median_us(lambda: classifier.encoder.run({"images": images})),
            "classify": median_us(lambda: classifier.classify(images[0])),
        }
    return ", ".join(f"{name} {value:.0f} us" for name, value in figures.items())


CHECKS: dict[str, Callable[[Case], str]] = {
    name.removeprefix("check_"): check for name, check in dict(globals()).items() if name.startswith("check_")
}


def main() -> int:
    """Run every check, print a line each, and write the result as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", choices=CHECKS, action="append")
    arguments = parser.parse_args()
    case, results = Case(load_bundle(arguments.bundle), arguments.precision), []
    print(f"{cuda.find_device()}, precision {case.precision}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault(CACHE_VARIABLE, folder)
        for name in arguments.only or CHECKS:
            started, status = time.perf_counter(), "passed"
            try:
                detail = CHECKS[name](case)
            except Exception as error:
                status, detail = "FAILED", f"{type(error).__name__}: {error}"
                traceback.print_exc()
            seconds = time.perf_counter() - started
            results.append({"check": name, "status": status, "detail": detail, "seconds": round(seconds, 2)})
            print(f"{status} {name} ({seconds:.1f} s): {detail}", flush=True)
    if arguments.output:
        document = {"device": str(cuda.find_device()), "precision": case.precision, "checks": results}
        document["environment"] = describe_environment()
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    return int(any(result["status"] == "FAILED" for result in results))


if __name__ == "__main__":
    sys.exit(main())

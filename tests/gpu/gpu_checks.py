"""What only a GPU can show, as a script for any Python with numpy and an engine's wheels: no torch, onnx or pytest.

python tests/gpu/gpu_checks.py BUNDLE [--precision fp32] [-o result.json]

Checks the TensorRT engine against the bundle's own golden and reference data and against itself: batches, samples,
noise, CUDA graph, cache, memory, threads. Then times it. Exit 1 if a check fails. ONNX Runtime on CUDA is verified too,
where it is installed. Some two minutes with TensorRT-RTX, up to eight with TensorRT, most of them its builds.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_case import Case, head_entry, private_cache, same_votes
from gpu_timing import measure_latency

from flss_runtime.bundle import load_bundle
from flss_runtime.engine_cache import EngineCache
from flss_runtime.engines import cuda, open_engine
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_pair import TrtPair
from flss_runtime.environment import describe_environment
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import EngineUnavailable, InferenceError
from flss_runtime.noise import SeededNoise

BATCHES, SAMPLES = (1, 2, 7, 128), (1, 100, 256)
OTHER_ENGINES = ("ort:cuda", "ort:tensorrt", "ort:tensorrt-rtx")


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
        limit = classifier.sampler.encoder.plan.largest[1]["images"][0]  # type: ignore[attr-defined]
        for batch in BATCHES:
            images = case.images(min(batch, limit))
            for samples in SAMPLES:
                shape = (len(images), samples, case.bundle.latent_dim)
                noise = np.random.default_rng(samples).standard_normal(shape).astype(np.float32)
                whole = case.graph_by_graph(classifier, images, noise, 2.0)
                one = case.graph_by_graph(classifier, images[-1:], noise[-1:], 2.0)
                last = {name: value[-1:] for name, value in whole.items()}
                largest = max(largest, same_votes(last, one, case.tolerance))
                pair, source = classifier.sampler.pair, SeededNoise(samples)
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
        pair = classifier.sampler.pair
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
        pair = classifier.sampler.pair
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
        encoder, good = classifier.sampler.encoder, case.images(1)
        bad = [{}, {"image": good}, {"images": good.astype(np.float64)}, {"images": good[:, :2]}, {"images": good[0]}]
        for tensors in [*bad, {"images": np.repeat(good, 129, axis=0)}]:
            try:
                encoder.run(tensors)
            except InferenceError:
                continue
            raise AssertionError(f"took {[(name, value.shape) for name, value in tensors.items()]}")
        assert encoder.run({"images": good})["mean"].shape == (1, case.bundle.latent_dim)
        latent, noise = case.bundle.latent_dim, np.zeros((1, 5, case.bundle.latent_dim), np.float32)
        unequal = {"mean": np.zeros((2, latent), np.float32), "std": np.zeros((3, latent), np.float32)}
        try:
            classifier.sampler.head.run({**unequal, "noise": noise, "noise_scale": np.ones(1, np.float32)})
        except InferenceError:
            pass
        else:
            raise AssertionError("took 2 means and 3 standard deviations")
    try:
        encoder.run({"images": good})
    except InferenceError:
        return "ok"
    raise AssertionError("a closed engine ran")


def check_cache(case: Case) -> str:
    """The second start builds nothing and is faster; a damaged engine is rebuilt, and damaged timings do not matter."""
    cache = EngineCache()
    with case.opened():
        pass
    stamps = {entry.folder: entry.sha256 for entry in cache.entries()}
    started = time.perf_counter()
    with case.opened() as classifier:
        classifier.vote(case.images(1))
    warm = time.perf_counter() - started
    assert {entry.folder: entry.sha256 for entry in cache.entries()} == stamps, "something was built again"
    entry = head_entry(case.bundle, import_tensorrt(), cuda.find_device(), cache)
    for timings in cache.root.glob("timings/*"):
        timings.write_bytes(b"no timings")
    content = (entry.folder / "engine.bin").read_bytes()
    (entry.folder / "engine.bin").write_bytes(content[: len(content) // 2])
    with open_engine(case.bundle.path / entry.graph_name, "trt"):
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
        left.append(cuda.runtime().cudaMemGetInfo()[1] / 2**20)
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


CHECKS: dict[str, Callable[[Case], str]] = {
    name.removeprefix("check_"): check for name, check in dict(globals()).items() if name.startswith("check_")
}
CHECKS["latency"] = measure_latency  # last, because the GPU is warm then


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
    with private_cache():
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

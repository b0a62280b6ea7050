"""What sampling costs on this machine: the classifier against the deterministic network, told apart from its noise.

Single stream, batch 1, from a uint8 image on the host to the decision; the next frame starts after the reply. Every
process start runs the arms in palindromic blocks, and the overhead is the ratio of the arms' medians within a block.
Rules: MLPerf Inference (single stream, minimum counts); this is not an MLPerf result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime import latency
from flss_runtime import validity as checks
from flss_runtime.arms import DETERMINISTIC, smoothed_name
from flss_runtime.bench_process import Progress, Times, run_processes
from flss_runtime.bench_worker import PROFILES, Profile
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.engines import AUTO
from flss_runtime.engines.auto import choose_engine
from flss_runtime.engines.cores import physical_cores
from flss_runtime.environment import describe_environment
from flss_runtime.errors import UsageError
from flss_runtime.latency import Overhead

SCHEMA_VERSION = 1
# A claim about a 2 % overhead needs an interval of at most half a percent to each side.
PRECISE_HALF_WIDTH = 0.005


@dataclass(frozen=True)
class BenchResult:
    """A finished benchmark; every field but `times_ms` holds JSON values, None for what could not be measured.

    Attributes:
        environment: machine and versions (`describe_environment`).
        artifact: digests of the bundle and of its graphs.
        config: engine, threads, numbers of samples, profile, seed, boundary, images.
        results: `arms`, `overhead`, `stages_ms`, `start`, `warm_up`, `peak_rss_mib`.
        validity: `valid`, `flags` (name and detail each), `counters` of every process start.
        times_ms: arm -> (n,) milliseconds of every timed frame in order.
    """

    environment: dict[str, Any]
    artifact: dict[str, Any]
    config: dict[str, Any]
    results: dict[str, Any]
    validity: dict[str, Any]
    times_ms: dict[str, NDArray[np.float64]]

    @property
    def valid(self) -> bool:
        """Whether nothing speaks against the numbers."""
        return bool(self.validity["valid"])

    @property
    def flags(self) -> list[checks.Flag]:
        """What speaks against the numbers: `name` and `detail` each."""
        return list(self.validity["flags"])

    def overhead(self, num_samples: int) -> dict[str, Any]:
        """Return the overhead row of the arm with so many samples.

        Raises:
            UsageError: if it was not measured.
        """
        for row in self.results["overhead"]:
            if row["arm"] == smoothed_name(num_samples):
                return dict(row)
        raise UsageError(f"N = {num_samples} was not part of this benchmark", f"measure it: -n {num_samples}")

    def to_json(self, *, include_times: bool = False) -> dict[str, Any]:
        """Return everything as JSON values.

        Args:
            include_times: add `times_ms`, every single latency.
        """
        fields: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "tool_version": self.environment["flss_edge"],
            "environment": self.environment,
            "artifact": self.artifact,
            "config": self.config,
            "results": self.results,
            "validity": self.validity,
        }
        if include_times:
            fields["times_ms"] = {name: times.tolist() for name, times in self.times_ms.items()}
        return fields


def run_benchmark(
    bundle: Bundle | Path,
    engine: str = "ort",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    strict: bool = True,
    num_samples: Sequence[int] = (1, 100),
    profile: str | Profile = "quick",
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure the deterministic network and the classifier of a bundle.

    Each process start is a child of this process, which only waits. No calibration is needed: every frame is accepted.

    Args:
        bundle: the bundle or its folder.
        engine: as for `open_engine`; "auto" measures the encoder.
        precision: of the network and of the baseline, as for `open_classifier`.
        threads: of the encoder and of the baseline; None takes the physical cores this process may use.
        strict: whether a missing device, or another precision than asked for, is an error.
        num_samples: one arm for each.
        profile: "quick" (about 20 s, not for publication), "standard" (about 4 minutes: 30 blocks of visits of at least
            one second in 3 process starts), or your own.
        seed: of the order of images and of the noise.
        progress: called with a phase and the share done in [0, 1], between blocks only, so that drawing it costs no
            timed frame anything; it must return quickly and must not keep a thread that draws.

    Returns:
        The result, with its validity flags; nothing is raised for a noisy machine.

    Raises:
        UsageError: unknown profile or engine, or a bad number of samples or threads.
        BundleError: the bundle cannot be verified, or has no deterministic graph.
        EngineUnavailable: the engine's library is absent, or the bundle has no graphs in this precision; or they run in
            another one, and `strict` is set.
        InferenceError: a process start failed.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    opened.graph(DETERMINISTIC, precision)  # a bundle without baseline is refused before anything is measured
    environment = describe_environment()
    spec: dict[str, Any] = {
        "bundle": str(opened.path.resolve()),
        # Chosen once: every arm of every process start has to run on the same engine.
        "engine": choose_engine(opened.graph("encoder", precision), threads=threads) if engine == AUTO else engine,
        "precision": precision,
        "threads": threads if threads is not None else physical_cores(),
        "strict": strict,
        "num_samples": _sample_counts(num_samples),
        "seed": seed,
        "profile": asdict(_profile(profile)),
    }
    starts, runs, times = run_processes(spec, spec["profile"]["processes"], progress or (lambda phase, share: None))
    names = runs[0]["arms"]
    latencies = {name: _of_arm(times, index) for index, name in enumerate(names)}
    results = _results(names, latencies, starts, runs, times)
    config = {
        **{key: value for key, value in spec.items() if key != "bundle"},
        "boundary": "uint8 image on the host to decision, single stream, batch 1",
        "images": runs[0]["images"],
        "engine_facts": starts[0]["engine_facts"],
    }
    counters = [run["counters"] for run in runs]
    flags = _flags(environment, config, results, counters)
    validity = {"valid": not flags, "flags": flags, "counters": counters}
    return BenchResult(environment, _artifact(opened), config, results, validity, latencies)


def _artifact(bundle: Bundle) -> dict[str, Any]:
    graphs, files = bundle.manifest["graphs"], bundle.manifest["files"]
    return {
        "name": bundle.manifest["name"],
        "bundle_sha256": bundle.digest,
        "graphs_sha256": {key: files[file]["sha256"] for key, file in graphs.items()},
        "input": bundle.input.to_json(),
        "latent_dim": bundle.latent_dim,
        "num_classes": bundle.num_classes,
    }


def _flags(
    environment: dict[str, Any], config: dict[str, Any], results: dict[str, Any], counters: list[dict[str, Any]]
) -> list[checks.Flag]:
    return [
        *checks.profile_flags(config["profile"]["name"]),
        *checks.machine_flags(environment, config["threads"]),
        *checks.run_flags(counters, environment["load_average"], environment["logical_cores"]),
        *checks.result_flags(results["arms"], results["warm_up"]),
    ]


def _sample_counts(num_samples: Sequence[int]) -> list[int]:
    counts = list(dict.fromkeys(num_samples))
    if not counts or min(counts) < 1:
        raise UsageError(f"numbers of samples are {counts}", "pass at least one number >= 1, such as -n 100")
    return counts


def _profile(profile: str | Profile) -> Profile:
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}", f"choose one of: {', '.join(PROFILES)}")
    return PROFILES[profile]


def _of_arm(times: Sequence[Times], index: int) -> NDArray[np.float64]:
    """Return all timed frames of one arm in milliseconds, in order."""
    return np.concatenate([run["latency_ns"][run["arm"] == index] for run in times]) / 1e6


def block_medians(times: Times, index: int) -> list[float]:
    """Return one arm's median of every block in milliseconds.

    A block's value is the mean of the medians of its two visits: with a palindrome a linear drift then cancels exactly
    between the arms.
    """
    own = times["arm"] == index
    medians = []
    for block in np.unique(times["block"]):
        here = own & (times["block"] == block)
        visits = [np.median(times["latency_ns"][here & (times["visit"] == which)]) for which in (0, 1)]
        medians.append(float(np.mean(visits)) / 1e6)
    return medians


def _results(
    names: Sequence[str],
    latencies: dict[str, NDArray[np.float64]],
    starts: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    times: Sequence[Times],
) -> dict[str, Any]:
    medians = {name: [block_medians(run, index) for run in times] for index, name in enumerate(names)}
    arms = []
    for name in names:
        row: dict[str, Any] = {"name": name, "num_samples": None if name == DETERMINISTIC else int(name[1:])}
        row |= latency.summarise(latencies[name])
        row |= {"block_medians_ms": medians[name], "variation": latency.variation(np.ravel(medians[name]))}
        arms.append(row)
    alone = np.concatenate([run["alone_ns"] for run in times]) / 1e6
    arms[0]["alone"] = latency.summarise(alone)
    arms[0]["interleaved_over_alone"] = float(np.median(latencies[names[0]]) / np.median(alone))
    return {
        "arms": arms,
        "overhead": [
            _overhead_row(latency.overhead(name, names[0], medians[name], medians[names[0]])) for name in names[1:]
        ],
        "stages_ms": runs[0]["stages_ms"],
        "start": {key: float(np.median([start[key] for start in starts])) for key in starts[0] if key.endswith("_ms")},
        "warm_up": [{"process": index, **row} for index, run in enumerate(runs) for row in run["warm_up"]],
        "peak_rss_mib": {
            "deterministic": _largest([run["peak_rss_mib"]["deterministic"] for run in runs]),
            "smoothed": _largest([start["peak_rss_mib"] for start in starts]),
            "all_arms": _largest([run["peak_rss_mib"]["all_arms"] for run in runs]),
        },
    }


def _overhead_row(found: Overhead) -> dict[str, Any]:
    precise = found.half_width is not None and found.half_width <= PRECISE_HALF_WIDTH
    return {**found.to_json(), "precise": precise}


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

"""What sampling costs on this machine: the classifier against the deterministic network, told apart from its noise.

Single stream, batch 1, from a uint8 image on the host to the decision; the next frame starts after the reply. Latencies
are those of an arm by itself, as a robot runs it; the overhead is the ratio of the arms' medians within blocks in which
they take turns. Rules: MLPerf Inference (single stream, minimum counts); this is not an MLPerf result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime import validity as checks
from flss_runtime.arm_names import BASELINE, all_arms, check_arms, primary_arm, require_graphs
from flss_runtime.bench_process import Progress, run_processes
from flss_runtime.bench_results import assemble, stream_latencies
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.decision import check_num_samples
from flss_runtime.engines import AUTO
from flss_runtime.engines.auto import choose_engine
from flss_runtime.engines.cores import physical_cores
from flss_runtime.environment import describe_environment
from flss_runtime.errors import UsageError
from flss_runtime.profiles import Profile, find_profile

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchResult:
    """A finished benchmark; every field but `times_ms` holds JSON values, None for what could not be measured.

    Attributes:
        environment: machine and versions (`describe_environment`).
        artifact: digests of the bundle and of its graphs.
        config: engine, threads, arms, profile, seed, boundary, images.
        results: `arms`, `overhead`, `throughput`, `energy`, `stages_ms`, `start`, `warm_up`, `peak_rss_mib`, `rss_mib`,
            `device_mib`.
        validity: `valid`, `flags` (name and detail each), `counters` of every process start.
        times_ms: arm -> (n,) milliseconds of every frame of the arm by itself, in order.
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

    def overhead(self, arm: str) -> dict[str, Any]:
        """Return the overhead row of an arm.

        Raises:
            UsageError: it was not measured.
        """
        for row in self.results["overhead"]:
            if row["arm"] == arm:
                return dict(row)
        raise UsageError(f"the arm {arm} was not part of this benchmark", f"measure it: --arms {arm}")

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
    num_samples: int | None = None,
    arms: Sequence[str] | None = None,
    camera: tuple[int, int] | None = None,
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
        num_samples: N of the arm that start, memory, energy and throughput are measured for, None: the bundle's.
        arms: names beside the baseline (`arm_names`); None takes all that the bundle's graphs allow.
        camera: width and height of camera frames that every frame begins at, and whose resizing is a part of it.
        profile: "quick" (not for publication), "standard", or your own.
        seed: of the order of images and of the noise.
        progress: called with a phase and the share done in [0, 1], between blocks only, so that drawing it costs no
            timed frame anything; it must return quickly and must not keep a thread that draws.

    Returns:
        The result, with its validity flags; nothing is raised for a noisy machine.

    Raises:
        UsageError: unknown profile, arm or engine, or a bad number of samples or threads.
        BundleError: the bundle cannot be verified, or lacks a graph that an arm needs.
        EngineUnavailable: the engine's library is absent, or the bundle has no graphs in this precision; or they run in
            another one, and `strict` is set.
        InferenceError: a process start failed.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    opened.graph(BASELINE, precision)  # a bundle without baseline is refused before anything is measured
    found = find_profile(profile)
    environment = describe_environment()
    spec: dict[str, Any] = {
        "bundle": str(opened.path.resolve()),
        # Chosen once: every arm of every process start has to run on the same engine.
        "engine": _chosen(opened, precision, threads) if engine == AUTO else engine,
        "precision": precision,
        "threads": threads if threads is not None else physical_cores(),
        "strict": strict,
        **_arms(opened, num_samples, arms, precision),
        "camera": camera,
        "seed": seed,
        "profile": asdict(found),
    }
    starts, runs, times = run_processes(spec, found.processes, progress or (lambda phase, share: None))
    results = assemble(starts, runs, times)
    config = {
        **{key: value for key, value in spec.items() if key != "bundle"},
        "boundary": _boundary(camera),
        "images": runs[0]["images"],
        "engine_facts": starts[0]["engine_facts"],
        "frames_of_visit": [[run["settle_frames"], run["visit_frames"]] for run in runs],
    }
    counters = [run["counters"] for run in runs]
    flags = _flags(environment, config, results, counters)
    validity = {"valid": not flags, "flags": flags, "counters": counters}
    alone = {name: stream_latencies(times, index) for index, name in enumerate(runs[0]["arms"])}
    return BenchResult(environment, _artifact(opened), config, results, validity, alone)


def _chosen(bundle: Bundle, precision: str, threads: int | None) -> str:
    return choose_engine(bundle.graph("encoder", precision), threads=threads, precision=precision)


def _arms(bundle: Bundle, num_samples: int | None, arms: Sequence[str] | None, precision: str) -> dict[str, Any]:
    samples = bundle.num_samples if num_samples is None else num_samples
    check_num_samples(samples)
    names = check_arms(all_arms(bundle, samples, precision) if arms is None else arms)
    require_graphs(bundle, names, precision)
    return {"arms": names, "primary": primary_arm(names, samples)}


def _boundary(camera: tuple[int, int] | None) -> str:
    begin = "uint8 image" if camera is None else f"uint8 camera frame of {camera[0]}x{camera[1]}"
    return f"{begin} on the host to decision, single stream, batch 1"


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

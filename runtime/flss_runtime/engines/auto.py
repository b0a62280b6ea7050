"""The fastest engine for a graph on this machine: measured once, then remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from flss_runtime.cache_files import cache_root, read_blob, write_blob
from flss_runtime.engines import Engine, open_engine
from flss_runtime.engines.cores import physical_cores
from flss_runtime.engines.libraries import import_library, version_of
from flss_runtime.engines.precision import NONE
from flss_runtime.engines.random_tensors import random_tensors
from flss_runtime.errors import BundleError, EngineUnavailable, FLSSError, OutputError
from flss_runtime.gpu import find_gpus
from flss_runtime.integrity import sha256_file
from flss_runtime.machine import cpu_model, logical_cores

# Engines that start at once: TensorRT's has to be built first, which can take minutes, so it is taken by name only.
_CANDIDATES = ("ort", "openvino", "ort:cuda")
_VISITS, _VISIT_SECONDS = 3, 1 / 3  # a second each, in turns, so that a slow moment of the machine hits all of them
_FOLDER = "auto"

_log = logging.getLogger("flss_runtime")


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a measurement found, engine by engine.

    Attributes:
        ms: Median milliseconds of a run.
        precision: Arithmetic that was read back; empty where nobody asked.
    """

    ms: Mapping[str, float]
    precision: Mapping[str, str]


def choose_engine(graph: Path, *, threads: int | None = None, precision: str | None = None) -> str:
    """Choose the engine that runs a graph fastest here, and say why on the logger `flss_runtime`.

    The first choice costs about a second an engine; the machine's cache remembers it for this graph, processor, number
    of threads and these versions of the libraries. Where only one engine is present, nothing is measured.

    Args:
        graph: ONNX file; its free dimensions are measured at 1.
        threads: As for `open_engine`.
        precision: What the graph is: engines that compute it in something else are left out, as long as one does not.
            None asks none of them.

    Returns:
        A spec for `open_engine`, such as "openvino".

    Raises:
        EngineUnavailable: No engine is installed, or none of those present runs the graph.
        BundleError: The graph is missing, or one that every engine present finds damaged.
    """
    if not graph.is_file():
        raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
    threads = threads or physical_cores()
    present = _present()
    if not present:
        raise EngineUnavailable(
            "no inference engine is installed", "install one, for instance: pip install 'flss-edge[cpu]'"
        )
    if len(present) == 1:
        (engine,) = present
        _log.info("auto: %s is the only engine here", engine)
        return engine
    place = _place(graph, threads, present, _gpu_facts(present))
    found = _remembered(place, present, precision)
    earlier = " (measured earlier)" if found else ""
    if found is None:
        found = _measure(graph, threads, list(present), precision)
        if place is not None:
            write_blob(place, json.dumps(asdict(found)).encode())
    chosen, why = _choice(found, threads, precision)
    _log.info("auto: %s%s", why, earlier)
    return chosen


def _present() -> dict[str, str]:
    """Return the candidates whose library is here -> the library's version."""
    present = {}
    for engine in _CANDIDATES:
        name, _, device = engine.partition(":")
        with suppress(EngineUnavailable):
            library = import_library(name)
            if not device or _has_cuda(library):
                present[engine] = version_of(library)
    return present


def _has_cuda(library: ModuleType) -> bool:
    return "CUDAExecutionProvider" in library.get_available_providers()


def _gpu_facts(present: dict[str, str]) -> list[list[str | None]]:
    """Return what the GPUs are and what drives them, where a candidate would run on one."""
    if not any(":" in engine for engine in present):
        return []
    gpus, driver = find_gpus()
    return [[driver.nvidia], *([gpu.name, gpu.compute_capability] for gpu in gpus)]


def _place(graph: Path, threads: int, present: dict[str, str], gpus: list[list[str | None]]) -> Path | None:
    """Return where the measurement of exactly this is kept; None without a place."""
    facts = [sha256_file(graph), cpu_model(), logical_cores(), threads, present, gpus]
    with suppress(OutputError):
        return cache_root() / _FOLDER / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
    return None


def _remembered(place: Path | None, present: dict[str, str], precision: str | None) -> _Measured | None:
    """Return what was measured before; None where there is nothing that makes sense or answers the question."""
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError):
        values: dict[str, Any] = json.loads(read_blob(place)) if place is not None else {}
        times = {engine: float(spent) for engine, spent in values["ms"].items()}
        computes = {engine: str(values.get("precision", {})[engine]) for engine in times if precision is not None}
        if times and all(engine in present and spent > 0 for engine, spent in times.items()):
            return _Measured(times, computes)
    return None


def _measure(graph: Path, threads: int, engines: list[str], precision: str | None = None) -> _Measured:
    """Run the engines in turns; those that cannot run the graph are left out.

    Raises:
        BundleError: All of them find it damaged.
        EngineUnavailable: None of them can run it.
    """
    spent: dict[str, list[float]] = {}
    opened: dict[str, Engine] = {}
    problems: dict[str, FLSSError] = {}
    computes: dict[str, str] = {}

    def drop(engine: str, error: FLSSError) -> None:
        _log.info("auto: without %s: %s", engine, error.problem)
        problems[engine] = error
        spent.pop(engine, None)

    with ExitStack() as stack:
        for engine in engines:
            try:
                opened[engine] = stack.enter_context(open_engine(graph, engine, threads=threads))
            except FLSSError as error:
                drop(engine, error)
        for _ in range(_VISITS):
            for name in [name for name in opened if name not in problems]:
                try:
                    spent.setdefault(name, []).extend(_visit(opened[name]))
                except FLSSError as error:
                    drop(name, error)
        # After the runs: it takes one more, and by then it is known that it works.
        for name in list(spent) if precision is not None else ():
            try:
                computes[name] = opened[name].precision()
            except FLSSError as error:
                drop(name, error)
    if not spent:
        raise _nobody(graph, problems)
    return _Measured({name: median(times) * 1e3 for name, times in spent.items()}, computes)


def _nobody(graph: Path, problems: Mapping[str, FLSSError]) -> FLSSError:
    reasons = "; ".join(f"{engine}: {error.problem}" for engine, error in problems.items())
    damaged = all(isinstance(error, BundleError) for error in problems.values())
    kind = BundleError if damaged else EngineUnavailable
    return kind(f"no engine here runs {graph.name}: {reasons}", "export the bundle again, or name --engine")


def _visit(engine: Engine) -> list[float]:
    """Run for a while and return the seconds of each run but the first ones, which find cold caches."""
    tensors = random_tensors(engine.inputs)
    end = time.perf_counter() + _VISIT_SECONDS
    times: list[float] = []
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        engine.run(tensors)
        times.append(time.perf_counter() - start)
    return times[2:]


def _choice(found: _Measured, threads: int, precision: str | None) -> tuple[str, str]:
    """Return the fastest engine that computes in this precision, the fastest of all where none does, and why."""
    ranked = sorted(found.ms, key=found.ms.__getitem__)
    others = [name for name in ranked if precision is not None and found.precision[name] not in (precision, NONE)]
    fitting = [name for name in ranked if name not in others]
    said = ", ".join(f"{name} in {found.precision[name]}" for name in others)
    if not fitting:
        return ranked[0], f"none computes in {precision} ({said}): {_explained(ranked, found.ms, threads)}"
    why = _explained(fitting, found.ms, threads)
    return fitting[0], f"{why}; left out, because not in {precision}: {said}" if others else why


def _explained(ranked: list[str], times: Mapping[str, float], threads: int) -> str:
    best, *others = ranked
    against = ", ".join(f"{engine} {times[engine]:.3g} ms" for engine in others)
    count = f"{threads} thread" + ("s" if threads != 1 else "")
    return f"{best} {times[best]:.3g} ms" + (f" against {against}" if against else "") + f" a run, {count}"

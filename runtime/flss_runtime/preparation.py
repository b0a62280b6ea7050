"""Everything slow about a bundle's first start, done beforehand: engines built, caches filled, decisions verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flss_runtime import machine
from flss_runtime.bundle import Bundle
from flss_runtime.bundle_engines import refuse_precision
from flss_runtime.engine_cache import CacheKey, EngineCache, Entry
from flss_runtime.engines.cuda import Device, find_device
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_build import Target, build_engine, cache_key, label, parse_target
from flss_runtime.equivalence import verify_bundle
from flss_runtime.equivalence_report import EquivalenceReport
from flss_runtime.errors import EngineUnavailable, GraphNotSupported, OutputError
from flss_runtime.integrity import sha256_file

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One graph that is ready to run.

    Attributes:
        role: "encoder", "head" or "gate".
        graph: The ONNX file.
        entry: Its engine in the cache.
        is_new: Whether it was built just now.
    """

    role: str
    graph: Path
    entry: Entry
    is_new: bool


def build_for(
    bundle: Bundle,
    precision: str = "fp32",
    targets: Sequence[str] = (),
    *,
    rebuild: bool = False,
    cache: EngineCache | None = None,
    say: Say,
) -> list[Prepared]:
    """Build the TensorRT engines of a bundle and put them into the cache.

    Args:
        bundle: The bundle.
        precision: Of its encoder and gate; the head is float32 where that can be built, else float16.
        targets: GPUs by compute capability, such as "sm86", which TensorRT-RTX needs not have; none for the one here.
        rebuild: Whether to build what is in the cache already.
        cache: Where engines are kept; None takes the user's.
        say: Takes lines on what is going on.

    Returns:
        An entry for each target and graph.

    Raises:
        EngineUnavailable: The library, the GPU, the precision or an operator is missing.
        UsageError: There is no such target.
        OutputError: The cache cannot be written.
    """
    refuse_precision("trt", precision)
    library = import_tensorrt(rtx=bool(targets))
    if targets:
        wanted = [parse_target(library, text) for text in targets]
    else:
        device = find_device()
        wanted = [Target(device.capability, device)]
    cache = cache or EngineCache()
    say(f"building with {label(library)}: {_expectation(library.__name__)}")

    def build(role: str, graph: Path, target: Target) -> Prepared:
        key = cache_key(library, graph, target)
        cache.reserve(key)
        before = cache.entry(key)
        cache.obtain(key, graph.name, lambda: build_engine(library, graph, target, cache), say=say, rebuild=rebuild)
        entry = cache.entry(key)
        if entry is None:
            raise OutputError(f"the engine for {graph.name} could not be kept", f"free some space in {cache.root}")
        say(f"{graph.name} for {target.capability}: {_made(entry, entry != before)}")
        return Prepared(role, graph, entry, entry != before)

    return [_with_head(bundle, role, precision, target, build, say) for target in wanted for role in roles(bundle)]


def verify_prepared(
    bundle: Bundle, engine: str, precision: str, prepared: Sequence[Prepared] = (), *, strict: bool = True
) -> EquivalenceReport:
    """Put an engine through the equivalence gate, filling its library's own caches, and keep the verdict.

    Args:
        bundle: The bundle.
        engine: As for `open_engine`.
        precision: As for `open_classifier`.
        prepared: Built engines that the verdict is about; none for libraries that build as they load, whose verdicts
            are kept under the graphs' digests all the same.
        strict: As for `open_engine`.

    Raises:
        EngineUnavailable: Another library answered than the one that the engines were built with.
        FLSSError: As `verify_bundle`; and an OutputError where the verdict cannot be kept.
    """
    report = verify_bundle(bundle, engine, precision=precision, strict=strict)
    entries = [part.entry for part in prepared] or _bare_entries(bundle, report)
    for entry in entries:
        if entry.key.library != report.facts["library"]:
            raise EngineUnavailable(
                f"{report.facts['library']} was verified, not the engines built with {entry.key.library}",
                "leave one of the two libraries installed, and prepare again",
            )
    for entry in entries:
        entry.store_verdict(report.to_json())
    return report


def opens_here(prepared: Prepared, device: Device, library: str) -> bool:
    """Tell whether engine "trt" takes an engine on this machine.

    Args:
        prepared: What was built, perhaps for another GPU, or with TensorRT-RTX beside TensorRT.
        device: This machine's GPU.
        library: Name and version of what "trt" runs on here.
    """
    key = prepared.entry.key
    return key.target.partition(" ")[0] == device.capability and key.library == library


def roles(bundle: Bundle) -> tuple[str, ...]:
    """Return the graphs that an answer takes."""
    return ("encoder", "head", "gate") if bundle.has_gate else ("encoder", "head")


def _with_head(
    bundle: Bundle, role: str, precision: str, target: Target, build: Callable[[str, Path, Target], Prepared], say: Say
) -> Prepared:
    if role != "head":
        return build(role, bundle.graph(role, precision), target)
    try:
        return build(role, bundle.graph(role), target)
    except GraphNotSupported:
        if precision != "fp16" or precision not in bundle.precisions(role):
            raise
        narrow = bundle.graph(role, precision)
        say(f"the float32 head cannot be built for {target.capability}: {narrow.name} takes its place")
        return build(role, narrow, target)


def _bare_entries(bundle: Bundle, report: EquivalenceReport) -> list[Entry]:
    cache, facts = EngineCache(), report.facts
    where = f"{facts['device']}, {machine.cpu_model() or 'unknown processor'}"
    precisions: Mapping[str, str] = facts["precision"]
    entries = []
    for role in roles(bundle):
        graph = bundle.graph(role, facts["graphs"][role])
        key = CacheKey(sha256_file(graph), facts["library"], where, profile=f"{facts['engine']}, nothing to build")
        entries.append(cache.store_bare(key, graph.name, precisions[role]))
    return entries


def _expectation(library: str) -> str:
    if "rtx" in library:
        return "a second or two a graph, more for large networks"
    return "it times kernels, so half a minute to several minutes a graph; leave the GPU alone meanwhile"


def _made(entry: Entry, is_new: bool) -> str:
    size = f"{entry.size / 2**20:.1f} MiB, {entry.precision}"
    return f"built in {entry.seconds:.1f} s, {size}" if is_new else f"in the cache already, {size}"

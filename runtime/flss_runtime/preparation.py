"""Everything slow about a bundle's first start, done beforehand: engines built, caches filled, decisions verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remembering
from pathlib import Path
from types import ModuleType

from flss_runtime import machine
from flss_runtime.bundle import Bundle
from flss_runtime.bundle_engines import refuse_precision
from flss_runtime.contract import check_names
from flss_runtime.engine_cache import CACHE_VARIABLE, CacheKey, EngineCache, Entry
from flss_runtime.engines.cuda import Device, find_device
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_build import Target, build_engine, cache_key, parse_target
from flss_runtime.engines.trt_library import label
from flss_runtime.engines.trt_network import read_network
from flss_runtime.equivalence import verify_bundle
from flss_runtime.equivalence_report import EquivalenceReport
from flss_runtime.errors import EngineUnavailable, GraphNotSupported, OutputError
from flss_runtime.integrity import sha256_file
from flss_runtime.precision_check import check_precision
from flss_runtime.sampling import LOGIT

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One graph that is ready to run.

    Attributes:
        role: "encoder", "head", "gate" or "logit".
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
    strict: bool = True,
    cache: EngineCache | None = None,
    say: Say,
) -> list[Prepared]:
    """Build the TensorRT engines of a bundle and put them into the cache.

    Args:
        bundle: The bundle.
        precision: Of its encoder and gate; the head is float32 where that can be built, else float16.
        targets: GPUs by compute capability, such as "sm86", which TensorRT-RTX needs not have; none for the one here.
        rebuild: Whether to build what is in the cache already.
        strict: Whether a graph that computes in another precision than its own is an error. If not, it is said.
        cache: Where engines are kept; None takes the user's.
        say: Takes lines on what is going on.

    Returns:
        An entry for each target and graph that votes: encoder, head, gate and, where it can be built, logit.

    Raises:
        BundleError: A graph is none, or not one of its role.
        EngineUnavailable: The library, the GPU, the precision or an operator is missing, or a graph computes in another
            precision than its own.
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
    builder = _Builder(bundle, library, cache or EngineCache(), rebuild, strict, say)
    say(f"building with {label(library)}: {_expectation(library.__name__)}")
    return [part for target in wanted for part in builder.build_all(precision, target)]


def verify_prepared(
    bundle: Bundle, engine: str, precision: str, prepared: Sequence[Prepared] = (), *, strict: bool = True
) -> EquivalenceReport:
    """Put an engine through the equivalence gate, filling its library's own caches.

    Args:
        bundle: The bundle.
        engine: As for `open_engine`.
        precision: As for `open_classifier`.
        prepared: Built engines that the verdict is about; none for libraries that build as they load.
        strict: As for `open_engine`.

    Raises:
        EngineUnavailable: Another library answered than the one that the engines were built with.
        FLSSError: As `verify_bundle`.
    """
    report = verify_bundle(bundle, engine, precision=precision, strict=strict)
    for part in prepared:
        if part.entry.key.library != report.facts["library"]:
            raise EngineUnavailable(
                f"{report.facts['library']} was verified, not the engines built with {part.entry.key.library}",
                "leave one of the two libraries installed, and prepare again",
            )
    return report


def keep_verdict(bundle: Bundle, report: EquivalenceReport, prepared: Sequence[Prepared] = ()) -> None:
    """Keep what `verify_prepared` said beside the engines that it is about.

    Args:
        bundle: The bundle.
        report: The verdict.
        prepared: The engines; where there are none, it is kept under the graphs' digests all the same.

    Raises:
        OutputError: It cannot be kept.
    """
    for entry in [part.entry for part in prepared] or _bare_entries(bundle, report):
        entry.store_verdict(report.to_json())


def opens_here(prepared: Prepared, device: Device, library: str) -> bool:
    """Tell whether engine "trt" takes an engine on this machine.

    Args:
        prepared: What was built, perhaps for another GPU, or with TensorRT-RTX beside TensorRT.
        device: This machine's GPU.
        library: Name and version of what "trt" runs on here.
    """
    key = prepared.entry.key
    return key.target.partition(" ")[0] == device.capability and key.library == library


class _Builder:
    """Builds a bundle's graphs; each is checked once, before minutes are spent on it."""

    def __init__(
        self, bundle: Bundle, library: ModuleType, cache: EngineCache, rebuild: bool, strict: bool, say: Say
    ) -> None:
        self.bundle, self.library, self.cache = bundle, library, cache
        self.rebuild, self.strict, self.say = rebuild, strict, say
        self._check = remembering(self._check_once)

    def build_all(self, precision: str, target: Target) -> Iterator[Prepared]:
        """Make the engines for one target; of the graphs that an answer can do without, those that can be built."""
        for role in ("encoder", "head", "gate") if self.bundle.has_gate else ("encoder", "head"):
            yield self.build(role, precision, target)
        if precision in self.bundle.precisions(LOGIT):
            try:
                yield self._obtain(LOGIT, precision, target)
            except GraphNotSupported as error:
                self.say(f"no {LOGIT} sampling on {target.capability}: {error.problem}")

    def build(self, role: str, precision: str, target: Target) -> Prepared:
        """Make the engine of a role; a head is float32 where that can be built."""
        try:
            return self._obtain(role, "fp32" if role == "head" else precision, target)
        except GraphNotSupported as error:
            if "fp16" not in self.bundle.precisions(role):
                raise
            if precision == "fp32":
                fix = "pass --precision fp16, which this bundle has, or choose another --engine"
                raise GraphNotSupported(error.problem, fix) from error
            if role != "head":
                raise
        narrow = self.bundle.graph(role, precision).name
        self.say(f"the float32 head cannot be built for {target.capability}: {narrow} takes its place")
        return self._obtain(role, precision, target)

    def _obtain(self, role: str, precision: str, target: Target) -> Prepared:
        self._check(role, precision)
        graph, cache = self.bundle.graph(role, precision), self.cache
        key = cache_key(self.library, graph, target)
        before = cache.entry(key)
        if self.rebuild or before is None or before.load() is None:
            cache.reserve(key, graph.stat().st_size)  # an engine is as large as its weights
        cache.obtain(
            key,
            graph.name,
            lambda: build_engine(self.library, graph, target, cache),
            say=self.say,
            rebuild=self.rebuild,
        )
        entry = cache.entry(key)
        if entry is None:
            raise OutputError(
                f"the engine for {graph.name} could not be kept",
                f"free some space in {cache.root}, or set {CACHE_VARIABLE} to another directory",
            )
        self.say(f"{graph.name} for {target.capability}: {_made(entry, entry != before)}")
        return Prepared(role, graph, entry, entry != before)

    def _check_once(self, role: str, precision: str) -> None:
        """Hold a graph against its role and its precision, which the bundle merely says."""
        found = read_network(self.library, self.bundle.graph(role, precision))
        check_names(role, found.inputs, found.outputs)
        facts = {"library": label(self.library), "device": "any GPU", "precision": {role: found.precision}}
        checked = check_precision({**facts, "graphs": {role: precision}}, precision, strict=self.strict)
        for note in (*checked.notes, *checked.doubts):
            self.say(note)


def _bare_entries(bundle: Bundle, report: EquivalenceReport) -> list[Entry]:
    cache, facts = EngineCache(), report.facts
    where = f"{facts['device']}, {machine.cpu_model() or 'unknown processor'}"
    precisions: Mapping[str, str] = facts["precision"]
    entries = []
    for role, precision in facts["graphs"].items():
        graph = bundle.graph(role, precision)
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

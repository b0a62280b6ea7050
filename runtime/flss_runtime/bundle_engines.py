"""A bundle's graphs in engines: which graph of each role runs in which precision, on how many threads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from flss_runtime.bundle import Bundle
from flss_runtime.engines import AUTO, Engine, open_engine
from flss_runtime.errors import EngineUnavailable, GraphNotSupported

_log = logging.getLogger("flss_runtime")


@dataclass(frozen=True, slots=True)
class BundleEngines:
    """The engines that decide: images -> mean, std -> classes, and a cascade's gate.

    Attributes:
        graphs: Role -> precision of the graph that was opened, which is not always what was asked for: see the head.
    """

    encoder: Engine
    head: Engine
    gate: Engine | None
    graphs: Mapping[str, str]

    def close(self) -> None:
        """Close them all."""
        for engine in (self.encoder, self.head, self.gate):
            if engine is not None:
                engine.close()


def open_bundle_engines(
    bundle: Bundle, engine: str = "ort", *, precision: str = "fp32", threads: int | None = None, strict: bool = True
) -> BundleEngines:
    """Open encoder, head and, of a cascade, gate.

    Args:
        bundle: Where the graphs are.
        engine: As for `open_engine`; "auto" measures the encoder, and takes the same engine for the other graphs.
        precision: Of encoder and gate. The head stays in float32, which costs next to nothing, unless the engine cannot
            build it: TensorRT on Turing has no float32 matrix product, and takes the head in fp16 too.
        threads: Of encoder and gate; None takes the physical cores. The head has one: its work is too small to share,
            and a second pool of threads slows the encoder down.
        strict: As for `open_engine`.

    Raises:
        BundleError: A graph is none that the engine understands.
        EngineUnavailable: The engine or its device is absent, or the bundle has no graph in this precision.
        UsageError: There is no such engine or precision.
    """
    refuse_precision(engine, precision)
    graph = bundle.graph("encoder", precision)
    if engine == AUTO:
        from flss_runtime.engines.auto import choose_engine

        engine = choose_engine(graph, threads=threads)
    options: dict[str, Any] = {"threads": threads, "strict": strict}
    with ExitStack() as opened:
        encoder = opened.enter_context(open_engine(graph, engine, **options))
        head, head_precision = _open_head(bundle, engine, precision, strict)
        opened.enter_context(head)
        graphs = {"encoder": precision, "head": head_precision}
        gate = None
        if bundle.has_gate:
            gate = opened.enter_context(open_engine(bundle.graph("gate", precision), engine, **options))
            graphs["gate"] = precision
        opened.pop_all()  # whoever asked for them closes them from here on
    return BundleEngines(encoder, head, gate, graphs)


def refuse_precision(engine: str, precision: str) -> None:
    """Refuse what an engine would load and compute wrongly.

    Raises:
        EngineUnavailable: TensorRT was asked for int8: a bundle's int8 is unsigned, as processors want it, and its
            parser reads that as signed.
    """
    if engine in ("trt", "ort:tensorrt", "ort:tensorrt-rtx") and precision == "int8":
        raise EngineUnavailable(
            f"engine {engine!r} has no int8: a bundle's int8 is unsigned, and TensorRT would read it as signed",
            "that is int8 for CPUs: take --precision fp16 here, or --engine ort or openvino",
        )


def _open_head(bundle: Bundle, engine: str, precision: str, strict: bool) -> tuple[Engine, str]:
    """Open the float32 head, or the narrow one where the engine is here and cannot run that, and say which."""
    try:
        return open_engine(bundle.graph("head"), engine, threads=1, strict=strict), "fp32"
    except GraphNotSupported as error:
        if precision != "fp16" or precision not in bundle.precisions("head"):
            raise
        half = open_engine(bundle.graph("head", precision), engine, threads=1, strict=strict)
        _log.warning("the head runs in %s, because it cannot in fp32: %s", precision, error.problem)
        return half, precision

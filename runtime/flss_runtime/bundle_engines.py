"""A bundle's graphs in engines: which graph of each role runs in which precision, on how many threads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from flss_runtime.bundle import Bundle
from flss_runtime.engines import AUTO, Engine, open_engine
from flss_runtime.errors import EngineUnavailable, GraphNotSupported, UsageError
from flss_runtime.sampling import LATENT, check_sampling

_log = logging.getLogger("flss_runtime")

# Engines on the host, where a frame pays for each call; TensorRT makes one of the two graphs by itself.
_FUSED_BY_DEFAULT = ("ort", "openvino")


@dataclass(frozen=True, slots=True)
class BundleEngines:
    """The engines that decide.

    Attributes:
        engines: Role of a graph -> the engine that runs it: what votes (encoder and head, fused, or logit), then a
            cascade's gate.
        graphs: Role -> precision of the graph that was opened, which is not always what was asked for: see the head.
    """

    engines: Mapping[str, Engine]
    graphs: Mapping[str, str]

    def close(self) -> None:
        """Close them all."""
        for engine in self.engines.values():
            engine.close()


def open_bundle_engines(
    bundle: Bundle,
    engine: str = "ort",
    *,
    precision: str = "fp32",
    sampling: str = LATENT,
    fused: bool | None = None,
    threads: int | None = None,
    strict: bool = True,
) -> BundleEngines:
    """Open the graphs that vote and, of a cascade, the gate.

    Args:
        bundle: Where the graphs are.
        engine: As for `open_engine`; "auto" measures the encoder, and takes the same engine for the other graphs.
        precision: Of network and gate. The head stays in float32, which costs next to nothing, unless the engine cannot
            build it: TensorRT on Turing has no float32 matrix product, and takes the head in fp16 too.
        sampling: One of `sampling.SAMPLINGS`.
        fused: Whether latent sampling runs the fused graph; None takes it where the bundle has it and the engine is one
            for CPUs (ADR 14).
        threads: Of network and gate; None takes the physical cores. The head has one: its work is too small to share,
            and a second pool of threads slows the encoder down.
        strict: As for `open_engine`.

    Raises:
        BundleError: A graph is none that the engine understands, or the bundle has none for this sampling.
        EngineUnavailable: The engine or its device is absent, or the bundle has no graph in this precision.
        UsageError: There is no such engine, precision or sampling, or a fused graph was asked for without latents.
    """
    refuse_precision(engine, precision)
    check_sampling(sampling)
    if engine == AUTO:
        from flss_runtime.engines.auto import choose_engine

        # Always by the encoder, so that every command on a bundle takes the same engine.
        engine = choose_engine(bundle.graph("encoder", precision), threads=threads, precision=precision)
    role = _network_role(bundle, engine, precision, sampling, fused)
    graph = bundle.graph(role, precision)
    options: dict[str, Any] = {"threads": threads, "strict": strict}
    with ExitStack() as opened:
        engines = {role: opened.enter_context(open_engine(graph, engine, **options))}
        graphs = {role: precision}
        if role == "encoder":
            engines["head"], graphs["head"] = _open_head(bundle, engine, precision, strict)
            opened.enter_context(engines["head"])
        if bundle.has_gate:
            engines["gate"] = opened.enter_context(open_engine(bundle.graph("gate", precision), engine, **options))
            graphs["gate"] = precision
        opened.pop_all()  # whoever asked for them closes them from here on
    return BundleEngines(engines, graphs)


def _network_role(bundle: Bundle, engine: str, precision: str, sampling: str, fused: bool | None) -> str:
    """Return the graph that takes the images: encoder, fused or logit."""
    if sampling != LATENT:
        if fused:
            raise UsageError(f"a fused graph is for latent sampling, not for {sampling}", "leave fused out")
        return "logit"
    if fused is None:
        fused = precision in bundle.precisions("fused") and engine in _FUSED_BY_DEFAULT
    return "fused" if fused else "encoder"


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

"""`flss-edge prepare`: build and verify a bundle's engines before the first frame needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flss_edge.cli.options import (
    BundleArgument,
    EngineOption,
    FormatOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    StrictOption,
    resolve_bundle,
)
from flss_edge.cli.output import Cell, Document, check_output, emit, say
from flss_runtime.errors import CheckFailed, EngineUnavailable, UsageError

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.engines.cuda import Device
    from flss_runtime.equivalence_report import EquivalenceReport
    from flss_runtime.preparation import Prepared

COLUMNS = {
    "graph": "graph",
    "precision": "computes in",
    "library": "library",
    "target": "for",
    "state": "engine",
    "seconds": "built in s",
    "mib": "MiB",
    "verdict": "verdict",
}
NOT_VERIFIED = "not verified"


def prepare(
    bundle: BundleArgument = None,
    engine: EngineOption = "trt",
    precision: PrecisionOption = "fp32",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Build for these GPUs instead of this machine's, by compute capability: sm75,sm86. "
            "TensorRT-RTX builds without a GPU.",
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build even what is in the cache already.")] = False,
    strict: StrictOption = True,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Build a bundle's engines, cache them, and check that they decide as the checkpoint.

    TensorRT takes minutes, TensorRT-RTX seconds; other engines build nothing and are verified only. The verdict of
    the equivalence gate is kept beside each engine and shown by inspect; exit 1 unless it is "passed".
    """
    from flss_runtime.bundle import load_bundle
    from flss_runtime.engines import AUTO, parse_engine
    from flss_runtime.preparation import keep_verdict

    check_output(form, output, overwrite)
    loaded = load_bundle(resolve_bundle(bundle))
    if engine == AUTO or parse_engine(engine).engine != "trt":
        if target is not None or rebuild:
            raise UsageError(
                f"--target and --rebuild make no sense with --engine {engine}, which builds as it loads",
                "leave them out, or pass --engine trt",
            )
        done = _open_once(loaded, engine, precision, strict)
        engine = done.engine  # "auto" has chosen one
    else:
        done = _build(loaded, precision, _targets(target), rebuild, strict)
    report = done.report
    document = Document(
        command="prepare",
        columns=COLUMNS,
        rows=done.rows,
        results={"engines": done.rows, "verification": None if report is None else report.to_json()},
        artifact={"bundle": str(loaded.path), "digest": loaded.digest},
        config={"engine": engine, "precision": precision, "target": target, "rebuild": rebuild},
        notes=() if report is None else report.notes,
    )
    emit(document, form, output, overwrite)
    say(done.note)
    if report is None:
        return
    keep_verdict(loaded, report, done.verified)  # after it was shown: where it cannot be kept, it is known all the same
    if not report.passed:
        reasons = "; ".join((*report.failures, *report.doubts))
        raise CheckFailed(
            f"{loaded.path} was prepared, but its decisions are not verified on {engine} ({report.verdict}): {reasons}",
            "do not deploy what failed; where images were too few, run flss-edge verify with --data",
        )


@dataclass(frozen=True)
class _Done:
    """What was prepared, and the verdict on it; `verified` are the engines in the cache that it is about."""

    engine: str
    rows: list[dict[str, Cell]]
    report: EquivalenceReport | None
    note: str
    verified: Sequence[Prepared] = ()


def _targets(text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip().lower() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--target {text!r} has an empty name", "name compute capabilities, such as sm75,sm86")
    return list(dict.fromkeys(names))


def _open_once(bundle: Bundle, engine: str, precision: str, strict: bool) -> _Done:
    from flss_runtime.preparation import verify_prepared

    report = verify_prepared(bundle, engine, precision, strict=strict)
    facts = report.facts
    common = {"library": facts["library"], "target": facts["device"], "state": "opened", "verdict": str(report.verdict)}
    rows: list[dict[str, Cell]] = [
        {"graph": role, "precision": facts["precision"][role], **common} for role in facts["graphs"]
    ]
    return _Done(report.engine, rows, report, f"{report.engine} builds nothing; it was opened and verified")


def _build(bundle: Bundle, precision: str, targets: list[str], rebuild: bool, strict: bool) -> _Done:
    from flss_runtime.engines.libraries import import_library
    from flss_runtime.engines.trt_library import label
    from flss_runtime.preparation import build_for, opens_here, verify_prepared

    prepared = build_for(bundle, precision, targets, rebuild=rebuild, strict=strict, say=say)
    made = "built" if any(part.is_new for part in prepared) else "cached"
    device, library = _device(), label(import_library("trt"))
    here = [part for part in prepared if device is not None and opens_here(part, device, library)]
    if here:
        say("verifying: the bundle's images are replayed through the engines")
        report = verify_prepared(bundle, "trt", precision, here, strict=strict)
        rows = [_row(part, str(report.verdict) if part in here else NOT_VERIFIED) for part in prepared]
        return _Done("trt", rows, report, f"{made} and verified: {report.verdict}", here)
    missing = "no GPU here"
    if device is not None:
        fits = device.capability in targets
        missing = f"engine 'trt' is {library} here" if fits else f"no {' or '.join(targets)} GPU here"
    return _Done("trt", [_row(part, NOT_VERIFIED) for part in prepared], None, f"{made}, not verified: {missing}")


def _device() -> Device | None:
    from flss_runtime.engines.cuda import find_device

    try:
        return find_device()
    except EngineUnavailable:
        return None


def _row(part: Prepared, verdict: str) -> dict[str, Cell]:
    entry = part.entry
    return {
        "role": part.role,
        "graph": Path(part.graph).name,
        "precision": entry.precision,
        "library": entry.key.library,
        "target": entry.key.target,
        "state": "built" if part.is_new else "in the cache",
        "seconds": entry.seconds,
        "mib": entry.size / 2**20,
        "verdict": verdict,
        "cache": str(entry.folder),
    }

"""`flss-edge prepare`: build and verify a bundle's engines before the first frame needs them."""

from __future__ import annotations

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

    check_output(form, output, overwrite)
    loaded = load_bundle(resolve_bundle(bundle))
    if engine == AUTO:
        from flss_runtime.engines.auto import choose_engine

        engine = choose_engine(loaded.graph("encoder", precision))
    report: EquivalenceReport | None
    if parse_engine(engine).engine != "trt":
        if target is not None or rebuild:
            raise UsageError(
                f"--target and --rebuild make no sense with --engine {engine}, which builds as it loads",
                "leave them out, or pass --engine trt",
            )
        rows, report, note = _open_once(loaded, engine, precision, strict)
    else:
        rows, report, note = _build(loaded, precision, _targets(target), rebuild)
    document = Document(
        command="prepare",
        columns=COLUMNS,
        rows=rows,
        results={"engines": rows, "verification": None if report is None else report.to_json()},
        artifact={"bundle": str(loaded.path), "digest": loaded.digest},
        config={"engine": engine, "precision": precision, "target": target, "rebuild": rebuild},
        notes=() if report is None else report.notes,
    )
    emit(document, form, output, overwrite)
    say(note)
    if report is not None and not report.passed:
        reasons = "; ".join((*report.failures, *report.doubts))
        raise CheckFailed(
            f"{loaded.path} was prepared, but its decisions are not verified on {engine} ({report.verdict}): {reasons}",
            "do not deploy what failed; where images were too few, run flss-edge verify with --data",
        )


def _targets(text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip().lower() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--target {text!r} has an empty name", "name compute capabilities, such as sm75,sm86")
    return list(dict.fromkeys(names))


def _open_once(
    bundle: Bundle, engine: str, precision: str, strict: bool
) -> tuple[list[dict[str, Cell]], EquivalenceReport, str]:
    from flss_runtime.preparation import roles, verify_prepared

    report = verify_prepared(bundle, engine, precision, strict=strict)
    facts = report.facts
    common = {"library": facts["library"], "target": facts["device"], "state": "opened", "verdict": str(report.verdict)}
    rows = [{"graph": role, "precision": facts["precision"][role], **common} for role in roles(bundle)]
    return rows, report, f"{engine} builds nothing; it was opened and verified"


def _build(
    bundle: Bundle, precision: str, targets: list[str], rebuild: bool
) -> tuple[list[dict[str, Cell]], EquivalenceReport | None, str]:
    from flss_runtime.engines.libraries import import_library
    from flss_runtime.engines.trt_build import label
    from flss_runtime.preparation import build_for, opens_here, verify_prepared

    prepared = build_for(bundle, precision, targets, rebuild=rebuild, say=say)
    device, library = _device(), label(import_library("trt"))
    here = [part for part in prepared if device is not None and opens_here(part, device, library)]
    if here:
        say("verifying: the bundle's images are replayed through the engines")
        report = verify_prepared(bundle, "trt", precision, here)
        return (
            [_row(part, str(report.verdict) if part in here else NOT_VERIFIED) for part in prepared],
            report,
            (f"built and verified: {report.verdict}"),
        )
    missing = "no GPU here"
    if device is not None:
        fits = device.capability in targets
        missing = f"engine 'trt' is {library} here" if fits else f"no {' or '.join(targets)} GPU here"
    return [_row(part, NOT_VERIFIED) for part in prepared], None, f"built, not verified: {missing}"


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

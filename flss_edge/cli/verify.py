"""`flss-edge verify`: does this engine still decide as the trainer's framework did?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flss_edge.cli.options import (
    BundleArgument,
    CheckpointOption,
    DataOption,
    EngineOption,
    FormatOption,
    OutputOption,
    OverwriteOption,
    ThreadsOption,
    require_training,
    resolve_bundle,
)
from flss_edge.cli.output import Cell, Document, check_output, emit, say
from flss_runtime.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.comparison import Comparison

COLUMNS = {
    "name": "replayed",
    "images": "images",
    "real": "real",
    "mean": "mean differs",
    "std": "std differs",
    "logits": "logits differ",
    "gate_logits": "gate logits differ",
    "gate_confidence": "gate confidence differs",
    "largest_vote_change": "largest vote change",
    "class_flips": "class flips",
    "rejection_flips": "rejection flips",
    "gate_flips": "gate flips",
    "verdict": "verdict",
}


def verify(
    bundle: BundleArgument = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    gate: Annotated[
        Path | None, typer.Option("--gate", help="With --checkpoint: the checkpoint of a cascade's gate.")
    ] = None,
    engine: EngineOption = "ort",
    threads: ThreadsOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Check that an engine decides as the checkpoint.

    Every digest is checked and the stored images are replayed; exit 1 if a decision differs by more than the limits.

    With --data and --checkpoint the engine is compared with torch on those images as well.
    """
    from flss_runtime.bundle import load_bundle
    from flss_runtime.equivalence import verify_bundle

    check_output(form, output, overwrite)
    if (data is None) != (checkpoint is None):
        given, missing = ("--data", "--checkpoint") if checkpoint is None else ("--checkpoint", "--data")
        raise UsageError(
            f"{given} was given without {missing}", "give both to compare with torch on your images, or neither"
        )
    loaded = load_bundle(resolve_bundle(bundle))
    _check_gate(loaded, checkpoint, gate)
    report = verify_bundle(loaded, engine, threads=threads)
    comparisons = [report.golden, *([report.reference] if report.reference else [])]
    results = report.to_json()
    if data is not None and checkpoint is not None:
        on_data = _compare_with_torch(loaded, checkpoint, gate, data, engine, threads)
        comparisons.append(on_data)
        results["data"] = on_data.to_json()
    document = Document(
        command="verify",
        columns={key: name for key, name in COLUMNS.items() if loaded.has_gate or not key.startswith("gate_")},
        rows=[_row(comparison) for comparison in comparisons],
        results=results,
        artifact={"bundle": str(loaded.path), "digest": loaded.digest},
        config={"engine": report.engine, "threads": threads},
        notes=report.notes,
    )
    emit(document, form, output, overwrite)
    failures = [failure for comparison in comparisons for failure in comparison.failures]
    if failures:
        raise CheckFailed(
            f"{loaded.path} does not decide as its checkpoint on engine {report.engine}: {'; '.join(failures)}",
            "do not deploy it: export again with this engine's versions installed, or choose another engine",
        )
    say(f"VERIFY PASSED: {loaded.path} decides as its checkpoint on engine {report.engine}")


def _check_gate(bundle: Bundle, checkpoint: Path | None, gate: Path | None) -> None:
    if gate is not None and not (bundle.has_gate and checkpoint):
        reason = "--checkpoint" if bundle.has_gate else "a gate in the bundle"
        raise UsageError(f"--gate was given without {reason}", "leave it out, or name a cascade and both checkpoints")
    if checkpoint is not None and bundle.has_gate and gate is None:
        raise UsageError(f"{bundle.path} has a gate, which --checkpoint does not cover", "add --gate CHECKPOINT")


def _compare_with_torch(
    bundle: Bundle, checkpoint: Path, gate: Path | None, data: Path, engine: str, threads: int | None
) -> Comparison:
    require_training("verify --checkpoint")
    from flss_edge.checkpoint import load_checkpoint
    from flss_edge.cli.labelled import load_for_bundle
    from flss_export.parity import parity

    images = load_for_bundle(bundle, data, "test").images
    plain = None if gate is None else load_checkpoint(gate)
    return parity(load_checkpoint(checkpoint), bundle, images, gate=plain, engine=engine, threads=threads)


def _row(comparison: Comparison) -> dict[str, Cell]:
    return {
        "name": comparison.name,
        "images": comparison.images,
        "real": comparison.real,
        **comparison.tensor_differences,
        "largest_vote_change": comparison.largest_vote_change,
        "class_flips": comparison.class_flips,
        "rejection_flips": comparison.rejection_flips,
        "gate_flips": comparison.gate_flips,
        "verdict": "passed" if comparison.passed else "FAILED",
    }

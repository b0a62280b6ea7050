"""`flss-edge export`: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import (
    DataOption,
    NumSamplesOption,
    OverwriteOption,
    SeedOption,
    SplitOption,
    require_training,
)
from flss_edge.cli.output import progress, say
from flss_runtime.errors import UsageError

if TYPE_CHECKING:
    from flss_edge.checkpoint import Checkpoint
    from flss_runtime.bundle import Bundle


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: .pt, .pth or .safetensors; released FLSS ones too.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle folder; by default beside the checkpoint.")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            "--gate", help="Checkpoint of a plain classifier (recipe ccat): what it is sure of is not voted on."
        ),
    ] = None,
    data: DataOption = None,
    split: SplitOption = "test",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="LIST",
            help="Precisions of the graphs, such as fp32,fp16,int8; fp32 is always there, int8 needs --data.",
        ),
    ] = "fp32",
    sampling: Annotated[
        str,
        typer.Option(
            "--sampling",
            metavar="latent|logit",
            help="logit adds a graph for logit and deterministic sampling, with weights of its own; linear heads only.",
        ),
    ] = "latent",
    fused: Annotated[
        bool,
        typer.Option(
            "--fused/--no-fused",
            help="Add encoder and head as one graph, which saves a call a frame and holds the weights a second time.",
        ),
    ] = False,
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a checkpoint as a bundle.

    Nothing is written if the graphs decide differently from torch (exit 1). With --gate the bundle is a cascade.

    With --data the comparison uses real images, of which up to 600 travel with the bundle; without, synthetic ones.

    fp16 is for GPUs, int8 for processors. What either changes is said here, and judged by flss-edge verify.
    """
    from flss_runtime.atomic import refuse_existing

    target = checkpoint.with_suffix(".bundle") if output is None else output
    require_training("export")
    refuse_existing(target, overwrite)
    from flss_edge.checkpoint import load_checkpoint
    from flss_edge.data import load_images
    from flss_export.exporter import export_bundle
    from flss_export.precision import parse_precisions
    from flss_export.sampling_graphs import check_exported
    from flss_runtime.images import InputSpec

    precisions = parse_precisions(precision)
    check_exported(sampling)  # whether the head allows it is known once the checkpoint is read
    if "int8" in precisions and data is None:
        raise UsageError("int8 needs real images to find its ranges on", f"flss-edge export {checkpoint} --data DATA")
    with progress() as report:
        report(f"reading {checkpoint}", 0.0)
        loaded = load_checkpoint(checkpoint)
        loaded_gate = None if gate is None else load_checkpoint(gate)
        size = loaded.model.config.image_size
        spec = InputSpec(size, size)
        images = None if data is None else load_images(data, split, spec=spec)
        quantization = None
        if data is not None and "int8" in precisions:
            quantization = load_images(data, "fit", spec=spec, validation_per_class=_validation_per_class(loaded))
        report("exporting, and comparing torch with ONNX Runtime", 0.2)
        samples = 100 if num_samples is None else num_samples
        options: dict[str, Any] = {"precisions": precisions, "quantization": quantization, "overwrite": overwrite}
        options |= {"sampling": sampling, "fused": fused}
        bundle = export_bundle(loaded, target, gate=loaded_gate, data=images, num_samples=samples, seed=seed, **options)
    _report(bundle)
    print(bundle.path, flush=True)


def _validation_per_class(checkpoint: Checkpoint) -> int | None:
    """Return what keeps the images to quantize on apart from those that calibrate the threshold."""
    found: int | None = checkpoint.training.get("validation_per_class")
    return found


def _report(bundle: Bundle) -> None:
    parity = bundle.manifest["parity"]
    kind = "real" if parity["real"] else "synthetic"
    say(f"EXPORT PASSED: torch and ONNX Runtime agree on {parity['images']} {kind} images: {_changes(parity)}")
    if "fused" in parity:
        say(f"fused graph on the same images: {_changes(parity['fused'])}")
    for name, reduced in parity.get("reduced", {}).items():
        say(f"{name} on the same images: {_changes(reduced)}")
    reduced_too = [name for name in bundle.precisions() if name != "fp32"]
    if reduced_too:
        say(f"judge each on its device: flss-edge verify {bundle.path} --precision {reduced_too[-1]} --data DATA")


def _changes(comparison: dict[str, Any]) -> str:
    return f"{comparison['class_flips']} class flips, largest vote change {comparison['largest_vote_change']}"

"""`flss-edge export`: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a checkpoint as a bundle.

    Nothing is written if the graphs decide differently from torch (exit 1). With --gate the bundle is a cascade.

    With --data the comparison uses real images, of which up to 600 travel with the bundle; without, synthetic ones.
    """
    from flss_runtime.atomic import refuse_existing

    target = checkpoint.with_suffix(".bundle") if output is None else output
    require_training("export")
    refuse_existing(target, overwrite)
    from flss_edge.checkpoint import load_checkpoint
    from flss_edge.data import load_images
    from flss_export.exporter import export_bundle
    from flss_runtime.images import InputSpec

    with progress() as report:
        report(f"reading {checkpoint}", 0.0)
        loaded = load_checkpoint(checkpoint)
        loaded_gate = None if gate is None else load_checkpoint(gate)
        size = loaded.model.config.image_size
        images = None if data is None else load_images(data, split, spec=InputSpec(size, size))
        report("exporting, and comparing torch with ONNX Runtime", 0.2)
        samples = 100 if num_samples is None else num_samples
        bundle = export_bundle(
            loaded, target, gate=loaded_gate, data=images, overwrite=overwrite, num_samples=samples, seed=seed
        )
    parity = bundle.manifest["parity"]
    kind = "real" if parity["real"] else "synthetic"
    say(
        f"EXPORT PASSED: torch and ONNX Runtime agree on {parity['images']} {kind} images: "
        f"{parity['class_flips']} class flips, largest vote change {parity['largest_vote_change']}"
    )
    print(bundle.path, flush=True)

"""Arguments and options that several commands share, declared once, and what they resolve to."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from flss_edge.cli.output import Format
from flss_runtime.errors import EngineUnavailable

_TRAINING_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")

BundleArgument: TypeAlias = Annotated[
    Path | None,
    typer.Argument(help="Bundle folder; by default the only one in the current folder.", metavar="BUNDLE"),
]
DataOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Labelled images: .npz, CIFAR in torchvision's layout, or one folder of images a class."
    ),
]
CheckpointOption: TypeAlias = Annotated[
    Path | None, typer.Option("--checkpoint", help="The checkpoint the bundle was exported from (needs torch).")
]


def _known_engine(text: str) -> str:
    """Refuse an engine or device that does not exist before anything is read."""
    from flss_runtime.engines import AUTO, parse_engine

    return text if text == AUTO else str(parse_engine(text))


def _known_sampling(text: str) -> str:
    """Refuse a sampling that does not exist before anything is read."""
    from flss_runtime.sampling import check_sampling

    check_sampling(text)
    return text


EngineOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--engine",
        callback=_known_engine,
        metavar="ENGINE[:DEVICE]",
        help="Inference engine: ort, ort:cuda, ort:tensorrt, ort:tensorrt-rtx, openvino, openvino:gpu, trt, or auto "
        "for the fastest of ort, openvino and ort:cuda on this machine.",
    ),
]
StrictOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="Whether a missing device or another precision is an error, or a warning (and the CPU takes over).",
    ),
]
ThreadsOption: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the encoder; by default one a physical core.")
]
PrecisionOption: TypeAlias = Annotated[
    str, typer.Option("--precision", help="Precision of the network: fp32, fp16 or int8, as the bundle has it.")
]
SamplingOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--sampling",
        callback=_known_sampling,
        help="How the votes arise: latent, logit (the same in as many dimensions as classes) or deterministic.",
    ),
]
NumSamplesOption: TypeAlias = Annotated[
    int | None, typer.Option("-n", "--num-samples", help="Latent samples an image; by default the bundle's.")
]
SplitOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--split",
        help="Part of the data: test, train, validation, or its halves selection and calibration.",
    ),
]
SeedOption: TypeAlias = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")]
FormatOption: TypeAlias = Annotated[
    Format | None, typer.Option("--format", help="Format of the result; by default a table, or what -o's suffix names.")
]
OutputOption: TypeAlias = Annotated[Path | None, typer.Option("-o", "--output", help="Write the result to this file.")]
OverwriteOption: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def resolve_bundle(path: Path | None) -> Path:
    """Return the bundle that was named, or the only one in the current folder.

    Raises:
        UsageError: none was named and the current folder holds none, or several (the message lists them).
    """
    from flss_runtime.bundle import find_bundle

    return find_bundle(Path()) if path is None else path


def require_training(command: str) -> None:
    """Refuse a command that a robot's environment cannot run, before anything is read or written.

    Raises:
        EngineUnavailable: a library of the `train` extra is absent.
    """
    absent = [name for name in _TRAINING_LIBRARIES if find_spec(name) is None]
    if absent:
        raise EngineUnavailable(
            f"{command} needs {', '.join(absent)}, which this environment does not have",
            "pip install 'flss-edge[train]'",
        )

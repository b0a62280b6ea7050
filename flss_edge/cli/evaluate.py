"""`flss-edge evaluate`: accuracy of a checkpoint under attack, or of a bundle with its votes and rejections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.inspect import CHECKPOINT_SUFFIXES
from flss_edge.cli.options import (
    DataOption,
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OutputOption,
    OverwriteOption,
    SeedOption,
    SplitOption,
    ThreadsOption,
    require_training,
    resolve_bundle,
)
from flss_edge.cli.output import Document, check_output, emit
from flss_runtime.errors import UsageError

if TYPE_CHECKING:
    from flss_edge.data import ImageSet
    from flss_runtime.bundle import Bundle

COLUMNS = {"metric": "metric", "value": "value", "n": "images"}


def evaluate(
    artefact: Annotated[
        Path | None, typer.Argument(help="Checkpoint, or bundle (by default the only one here).")
    ] = None,
    data: DataOption = None,
    split: SplitOption = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first images.")] = None,
    pgd_steps: Annotated[int, typer.Option("--pgd-steps", min=0, help="Attack steps on a checkpoint; 0: none.")] = 20,
    epsilon: Annotated[str, typer.Option("--epsilon", help="Attack radius for pixels in [0, 1].")] = "8/255",
    step_size: Annotated[str, typer.Option("--step-size", help="Of the attack, likewise.")] = "2/255",
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    engine: EngineOption = "ort",
    threads: ThreadsOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure accuracy on labelled images.

    A checkpoint is measured in torch, on clean images and under PGD, without sampling. A bundle is measured as a robot
    runs it: accuracy before and after rejection, and the share of images that it answers.
    """
    check_output(form, output, overwrite)
    if data is None:
        raise UsageError("evaluate needs labelled images", "add --data DATA")
    config: dict[str, Any] = {"split": split, "seed": seed, "limit": limit}
    if artefact is not None and artefact.suffix in CHECKPOINT_SUFFIXES:
        config |= {"pgd_steps": pgd_steps, "epsilon": pixel_fraction(epsilon), "step_size": pixel_fraction(step_size)}
        document = _checkpoint(artefact, data, config, threads)
    else:
        config |= {"engine": engine, "num_samples": num_samples}
        document = _bundle(resolve_bundle(artefact), data, config, threads)
    emit(document, form, output, overwrite)


def pixel_fraction(text: str) -> float:
    """Return "8/255" or "0.03" as a float.

    Raises:
        UsageError: it is no number in [0, 1].
    """
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is no distance between pixels in [0, 1]", "write for example 8/255 or 0.03")
    return value


def _checkpoint(path: Path, data: Path, config: dict[str, Any], threads: int | None) -> Document:
    require_training("evaluate CHECKPOINT")
    import torch

    from flss_edge.checkpoint import load_checkpoint
    from flss_edge.cli.labelled import align_classes
    from flss_edge.data import load_images
    from flss_edge.evaluation import accuracy, pgd_accuracy
    from flss_runtime.images import InputSpec

    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    size, per_class = checkpoint.model.config.image_size, checkpoint.training.get("validation_per_class")
    found = load_images(data, config["split"], spec=InputSpec(size, size), validation_per_class=per_class)
    images = _first(align_classes(found, checkpoint.class_names), config["limit"])
    values = {"clean accuracy, no sampling": accuracy(checkpoint.model, images)}
    steps, epsilon = config["pgd_steps"], config["epsilon"]
    if steps:
        values[f"PGD-{steps} accuracy, no sampling, epsilon {epsilon * 255:g}/255"] = pgd_accuracy(
            checkpoint.model, images, epsilon=epsilon, step_size=config["step_size"], steps=steps, seed=config["seed"]
        )
    artifact = {"checkpoint": str(path), "sha256": checkpoint.sha256}
    return _document(_rows(values, len(images)), images, artifact, config, _warnings(checkpoint.training, found.source))


def _bundle(path: Path, data: Path, config: dict[str, Any], threads: int | None) -> Document:
    from flss_edge.cli.labelled import load_for_bundle
    from flss_runtime.bundle import load_bundle
    from flss_runtime.classifier import open_classifier
    from flss_runtime.noise import SeededNoise

    bundle = load_bundle(path)
    policy = bundle.policy(config["num_samples"])
    found = load_for_bundle(bundle, data, config["split"])
    images = _first(found, config["limit"])
    noise = SeededNoise(config["seed"])
    with open_classifier(bundle, config["engine"], policy=policy, noise=noise, threads=threads) as classifier:
        decisions = classifier.classify(images.images)
    pairs = list(zip(decisions, images.labels.tolist(), strict=True))
    accepted = [(decision, label) for decision, label in pairs if decision.accepted]
    right = sum(decision.top_label == label for decision, label in pairs)
    right_accepted = sum(decision.label == label for decision, label in accepted)
    share = right_accepted / len(accepted) if accepted else None
    values = {
        "accuracy of the vote, nothing rejected": right / len(pairs),
        "coverage (share accepted)": len(accepted) / len(pairs),
        "falsely rejected (share of all)": (right - right_accepted) / len(pairs),
    }
    config |= {"num_samples": policy.num_samples, "noise_scale": policy.noise_scale, "min_votes": policy.min_votes}
    warnings = _warnings(bundle.manifest["checkpoint"].get("training") or {}, found.source)
    rows = _rows(values, len(images))
    rows.insert(1, {"metric": "accuracy of the accepted", "value": share, "n": len(accepted)})
    return _document(rows, images, _digest(bundle), config, warnings)


def _warnings(training: dict[str, Any], source: str) -> list[str]:
    """Say so when the images include those that the network was trained on: `source` is then how theirs begins."""
    if not str(training.get("data", "")).startswith(source):
        return []
    return [f"{source} includes the images that this network was trained on: these figures flatter it"]


def _digest(bundle: Bundle) -> dict[str, Any]:
    return {"bundle": str(bundle.path), "digest": bundle.digest}


def _first(images: ImageSet, limit: int | None) -> ImageSet:
    import numpy as np

    return images if limit is None else images.take(np.arange(min(limit, len(images))), f"{images.source}[:{limit}]")


def _rows(values: dict[str, float], count: int) -> list[dict[str, Any]]:
    return [{"metric": name, "value": value, "n": count} for name, value in values.items()]


def _document(
    rows: list[dict[str, Any]],
    images: ImageSet,
    artifact: dict[str, Any],
    config: dict[str, Any],
    notes: list[str],
) -> Document:
    return Document(
        command="evaluate",
        columns=COLUMNS,
        rows=rows,
        artifact=artifact,
        config={**config, "data": images.source, "data_sha256": images.sha256},
        notes=notes,
    )

"""`flss-edge evaluate`: what a classifier is worth, to an adversary who knows everything about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flss_edge.cli.evaluation_options import SWEEPS, EvaluationOptions
from flss_edge.cli.inspect import CHECKPOINT_SUFFIXES
from flss_edge.cli.options import (
    DataOption,
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OutputOption,
    OverwriteOption,
    SamplingOption,
    SeedOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    require_training,
    resolve_bundle,
)
from flss_edge.cli.output import check_output, emit
from flss_runtime.errors import UsageError
from flss_runtime.sampling import LATENT


def evaluate(
    artefact: Annotated[
        Path | None, typer.Argument(help="Checkpoint, or bundle (by default the only one here).")
    ] = None,
    data: DataOption = None,
    split: SplitOption = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use so many images, evenly spaced; quick takes 200.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="quick, paper, paper-second, autoattack, adaptive, all, or one attack; repeatable."
        ),
    ] = None,
    epsilon: Annotated[str, typer.Option("--epsilon", help="Attack radius for pixels in [0, 1].")] = "8/255",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ATTACK.KEY=VALUE", help="Change a setting of an attack; repeatable."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="CLASSIFIER", help="What the adaptive attacks attack; repeatable."),
    ] = None,
    gate: Annotated[
        Path | None, typer.Option("--gate", help="A checkpoint of recipe ccat: adds the cascade of both.")
    ] = None,
    transfer_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--transfer-from", help="Checkpoint whose adversarial images are tried, in suite all; repeatable."
        ),
    ] = None,
    eot: Annotated[
        int, typer.Option("--eot", min=0, help="Average each gradient over so many noise samples; 0 attacks the mean.")
    ] = 0,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Images that freeze the thresholds, if not a split of --data.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Share of clean images that may be rejected though correct.")
    ] = 0.10,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help=f"Vary one thing: {', '.join(SWEEPS)}; draws a plot in --folder.")
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also noise, blur, JPEG, brightness … at five severities.")
    ] = False,
    out_of_distribution: Annotated[
        Path | None, typer.Option("--out-of-distribution", help="Images of other classes: how many are accepted?")
    ] = None,
    checks: Annotated[
        bool, typer.Option("--checks/--no-checks", help="Check that the attacks are no weaker than they look.")
    ] = True,
    replay: Annotated[Path | None, typer.Option("--replay", help="Send saved adversarial images to a bundle.")] = None,
    save_adversarial: Annotated[
        Path | None, typer.Option("--save-adversarial", help="Write the attacked images to this .npz.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Keep state, report and plots here; the same command resumes.")
    ] = None,
    num_samples: NumSamplesOption = None,
    noise_scale: Annotated[
        float, typer.Option("--noise-scale", min=0, help="Factor on the standard deviation of a checkpoint's latents.")
    ] = 2.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images attacked at a time.")] = 250,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1 …; auto is cuda where torch sees a GPU.")
    ] = "auto",
    seed: SeedOption = 0,
    engine: EngineOption = "ort",
    sampling: SamplingOption = LATENT,
    threads: ThreadsOption = None,
    strict: StrictOption = True,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure a classifier on labelled images, clean and attacked, with and without rejection.

    A checkpoint is attacked in torch by a suite of attacks, with every threshold frozen on calibration images first.
    A bundle is measured as a robot runs it, on clean images or on the adversarial ones that an earlier evaluation
    saved. docs/evaluation.md says what each figure means.
    """
    check_output(form, output, overwrite)
    options = EvaluationOptions(
        data=data,
        split=split,
        limit=limit,
        suites=tuple(suite or ["quick"]),
        epsilon=pixel_fraction(epsilon),
        settings=tuple(settings or ()),
        against=tuple(against or ()),
        gate=gate,
        sources=tuple(transfer_from or ()),
        eot=eot,
        calibration=calibration,
        budget=budget,
        sweep=sweep,
        corruptions=corruptions,
        out_of_distribution=out_of_distribution,
        checks=checks,
        replay=replay,
        save_adversarial=save_adversarial,
        folder=folder,
        num_samples=num_samples,
        noise_scale=noise_scale,
        batch_size=batch_size,
        device=device,
        seed=seed,
        engine=engine,
        sampling=sampling,
        threads=threads,
        strict=strict,
        overwrite=overwrite,
    )
    if artefact is not None and artefact.suffix in CHECKPOINT_SUFFIXES:
        require_training("evaluate CHECKPOINT")
        from flss_edge.cli.evaluate_checkpoint import evaluate_checkpoint

        if replay is not None:
            raise UsageError("--replay sends images to a bundle, not to a checkpoint", "export it first")
        if sampling != LATENT:
            fix = "leave it out: deterministic-vote stands beside vote, and --against deterministic-vote attacks it"
            raise UsageError("--sampling says how a bundle votes, not a checkpoint", fix)
        document = evaluate_checkpoint(artefact, options)
    else:
        from flss_edge.cli.evaluate_bundle import evaluate_bundle

        document = evaluate_bundle(resolve_bundle(artefact), options)
    if document is not None:  # only the first of several processes reports
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
    if not 0 <= value <= 1 or (value == 1 and not denominator):
        whole = text.strip().removesuffix(".0")
        hint = f"; did you mean {whole}/255?" if whole.isdigit() else ""
        raise UsageError(f"{text!r} is no distance between pixels in [0, 1]", f"write for example 8/255 or 0.03{hint}")
    return value

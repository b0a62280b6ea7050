"""`flss-edge calibrate`: the rejection threshold from held-out images, stored in the bundle with its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flss_edge.cli.options import (
    BundleArgument,
    DataOption,
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    SamplingOption,
    SeedOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    resolve_bundle,
)
from flss_edge.cli.output import Document, check_output, emit, progress, say
from flss_runtime.errors import UsageError
from flss_runtime.sampling import DETERMINISTIC, LATENT

COLUMNS = {
    "mode": "sampling",
    "num_samples": "N",
    "noise_scale": "noise scale",
    "min_confidence": "min confidence",
    "min_votes": "min votes",
    "budget": "budget",
    "n": "images",
    "correct": "correct",
    "false_rejects": "false rejects",
    "coverage": "coverage",
    "accuracy_no_sampling": "NS",
    "accuracy_no_rejection": "0 %",
    "accuracy_accepted": "accepted",
}


def calibrate(
    bundle: BundleArgument = None,
    data: DataOption = None,
    split: SplitOption = "calibration",
    budget: Annotated[
        float, typer.Option("--budget", help="Allowed share of images that are classified correctly and yet rejected.")
    ] = 0.10,
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    engine: EngineOption = "ort",
    precision: PrecisionOption = "fp32",
    sampling: SamplingOption = LATENT,
    threads: ThreadsOption = None,
    strict: StrictOption = True,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Choose and store the rejection threshold.

    It is the strictest one that falsely rejects at most the budget's share of the images. These must be images that
    neither trained the model nor chose the checkpoint. Each sampling and each number of samples has its own.

    A cascade gets two: its gate keeps 99 % of what it classifies correctly; the vote's is chosen on the vote alone.
    """
    from flss_edge.cli.labelled import load_for_bundle
    from flss_runtime.bundle import load_bundle, store_calibration
    from flss_runtime.calibration import Provenance
    from flss_runtime.calibration import calibrate as calibrate_policy
    from flss_runtime.decision import SmoothingPolicy
    from flss_runtime.noise import SeededNoise
    from flss_runtime.opening import open_classifier
    from flss_runtime.precision_check import check_precision

    check_output(form, output, overwrite)
    loaded = load_bundle(resolve_bundle(bundle))
    if data is None:
        raise UsageError("calibrate needs labelled images", f"flss-edge calibrate {loaded.path} --data DATA")
    found = load_for_bundle(loaded, data, split)
    samples = loaded.num_samples if num_samples is None else num_samples
    policy = SmoothingPolicy(samples, loaded.noise_scale, min_confidence=0.0 if loaded.has_gate else None)
    options: dict[str, Any] = {"policy": policy, "noise": SeededNoise(seed), "threads": threads, "strict": strict}
    options |= {"precision": precision, "sampling": sampling}
    with progress() as report, open_classifier(loaded, engine, **options) as classifier:
        report(f"voting on {len(found)} images", 0.0)
        facts = classifier.engine_facts()
        checked = check_precision(facts, precision, strict=strict)
        noise_seed = None if sampling == DETERMINISTIC else seed
        provenance = Provenance(found.source, found.sha256, _engine_in_words(facts), noise_seed)
        entry = calibrate_policy(classifier, found.images, found.labels, budget, provenance)
    stored = store_calibration(loaded, entry)
    gate = {"min_confidence": entry["gate"]["min_confidence"]} if loaded.has_gate else {}
    document = Document(
        command="calibrate",
        columns={key: name for key, name in COLUMNS.items() if gate or key != "min_confidence"},
        rows=[{**entry, **gate}],
        artifact={"bundle": str(stored.path), "digest": stored.digest},
        config={"engine": engine, "precision": precision, "sampling": sampling, "split": split, "seed": noise_seed},
        notes=[*entry["notes"], *checked.notes, *checked.doubts],
    )
    emit(document, form, output, overwrite)
    if gate:
        found_gate = entry["gate"]
        say(
            f"the gate answers from a confidence of {found_gate['min_confidence']:.6g}: {found_gate['confident']} of "
            f"{entry['n']} images, {found_gate['kept']} of the {found_gate['correct']} that it classifies correctly"
        )
    low, high = entry["interval"]
    votes = f"{entry['min_votes']} of {entry['num_samples']} votes"
    say(
        f"stored in {stored.path} for {sampling} sampling: accepted from {votes}; "
        f"falsely rejected {entry['false_rejects']} of {entry['n']} (95 % interval {low:.1%} to {high:.1%})"
    )


def _engine_in_words(facts: Mapping[str, Any]) -> str:
    """Say what voted, as policy.json keeps it: "ort (onnxruntime 1.32.0, CPUExecutionProvider, fp32)"."""
    return f"{facts['engine']} ({facts['library']}, {facts['device']}, {next(iter(facts['precision'].values()))})"

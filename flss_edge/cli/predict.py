"""`flss-edge predict`: pictures to decisions, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import (
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    SamplingOption,
    StrictOption,
    ThreadsOption,
    resolve_bundle,
)
from flss_edge.cli.output import Cell, Document, check_output, emit, progress, say
from flss_runtime.errors import DataError, UsageError
from flss_runtime.sampling import DETERMINISTIC, LATENT

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.classifier import SmoothedClassifier
    from flss_runtime.decision import Decision
    from flss_runtime.noise import NoiseSource

COLUMNS = {
    "file": "file",
    "decision": "decision",
    "top_class": "top class",
    "votes": "votes",
    "num_samples": "N",
    "vote_share": "vote share",
    "gated": "gated",
    "status": "status",
    "reason": "reason",
}
_BATCH = 128  # pictures decoded and classified at a time: bounds the memory of a folder of any size


def predict(
    paths: Annotated[
        list[Path], typer.Argument(help="Bundle (by default the only one here), then pictures and folders of pictures.")
    ],
    engine: EngineOption = "ort",
    precision: PrecisionOption = "fp32",
    sampling: SamplingOption = LATENT,
    threads: ThreadsOption = None,
    strict: StrictOption = True,
    num_samples: NumSamplesOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Repeatable noise, for tests; by default the system's.")
    ] = None,
    record_key: Annotated[
        Path | None, typer.Option("--record-key", help="Store the noise key in this file (mode 0600), for a replay.")
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Classify pictures, or decline to.

    The result has one row a picture. A picture that cannot be read gets a row that says why; the exit code is then 7,
    after all others were answered.
    """
    from flss_runtime.bundle import load_bundle
    from flss_runtime.opening import open_classifier

    check_output(form, output, overwrite)
    bundle_path, pictures = _split(paths)
    files = list(_find_pictures(pictures))
    bundle = load_bundle(bundle_path)
    policy = bundle.policy(num_samples, sampling)  # refuses an uncalibrated bundle before a key is drawn or stored
    noise = _noise(seed, record_key, sampling)
    options: dict[str, Any] = {"policy": policy, "noise": noise, "threads": threads, "strict": strict}
    with open_classifier(bundle, engine, precision=precision, sampling=sampling, **options) as classifier:
        rows = list(_rows(classifier, bundle, files))
    document = Document(
        command="predict",
        columns={key: name for key, name in COLUMNS.items() if bundle.has_gate or key != "gated"},
        rows=rows,
        artifact={"bundle": str(bundle.path), "digest": bundle.digest},
        config={
            "engine": engine,
            "precision": precision,
            "sampling": sampling,
            "num_samples": policy.num_samples,
            "noise_scale": policy.noise_scale,
            "min_votes": policy.min_votes,
            "min_confidence": policy.min_confidence,
            "seed": seed,
        },
    )
    emit(document, form, output, overwrite)
    _finish(rows)


def _split(paths: Sequence[Path]) -> tuple[Path, Sequence[Path]]:
    first = paths[0]
    if first.suffix == ".bundle" or (first / "manifest.json").exists():
        if len(paths) == 1:
            raise UsageError(f"no pictures were given for {first}", f"flss-edge predict {first} PICTURE_OR_FOLDER …")
        return first, paths[1:]
    return resolve_bundle(None), paths


def _find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are and a folder's pictures in the order of their names.

    Raises:
        DataError: a folder holds no picture.
    """
    from flss_runtime.images import PICTURE_SUFFIXES

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        if not found:
            raise DataError(
                f"the folder {path} holds no picture",
                f"give a folder with files that end in {' '.join(sorted(PICTURE_SUFFIXES))}, or name the files",
            )
        yield from found


def _noise(seed: int | None, record_key: Path | None, sampling: str) -> NoiseSource:
    from flss_runtime.noise import SeededNoise, SystemNoise

    if sampling == DETERMINISTIC and (seed is not None or record_key is not None):
        raise UsageError("deterministic sampling has no noise to repeat", "drop --seed and --record-key")
    if seed is None:
        return SystemNoise(record_key)
    if record_key is not None:
        raise UsageError("--seed and --record-key were both given", "drop --record-key: a seed alone repeats the run")
    return SeededNoise(seed)


def _rows(classifier: SmoothedClassifier, bundle: Bundle, files: Sequence[Path]) -> Iterator[dict[str, Cell]]:
    with progress() as report:
        for start in range(0, len(files), _BATCH):
            report(f"classifying {len(files)} pictures", start / len(files))
            batch = files[start : start + _BATCH]
            for file, decision in zip(batch, _decide(classifier, bundle, batch), strict=True):
                yield _row(file, decision, bundle.class_names, classifier.policy.num_samples)


def _decide(classifier: SmoothedClassifier, bundle: Bundle, files: Sequence[Path]) -> list[Decision]:
    """Return one decision a file; unreadable ones never reach the classifier and cost the others nothing."""
    import numpy as np

    from flss_runtime.decision import Decision, Status
    from flss_runtime.images import read_image

    images, decisions, readable = [], [], []
    for index, file in enumerate(files):
        try:
            images.append(read_image(file, bundle.input))
            readable.append(index)
        except DataError as error:
            reason = f"{error.problem}; {error.fix}"
            decisions.append((index, Decision(None, None, 0, 0.0, Status.INVALID_INPUT, reason=reason)))
    if images:
        decisions += zip(readable, classifier.classify(np.stack(images)), strict=True)
    return [decision for _, decision in sorted(decisions, key=lambda pair: pair[0])]


def _row(file: Path, decision: Decision, class_names: Sequence[str], num_samples: int) -> dict[str, Cell]:
    voted = decision.top_label is not None
    return {
        "file": str(file),
        "decision": "rejected" if decision.label is None else class_names[decision.label],
        "top_class": None if decision.top_label is None else class_names[decision.top_label],
        "votes": decision.votes if voted else None,
        "num_samples": num_samples,
        "vote_share": round(decision.vote_share, 4) if voted else None,
        "status": str(decision.status),
        "reason": decision.reason,
        "counter": decision.counter,
        "gated": decision.gated,
    }


def _finish(rows: Sequence[dict[str, Cell]]) -> None:
    counts = Counter(str(row["status"]) for row in rows)
    say(f"{len(rows)} pictures: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if counts["invalid_input"]:
        raise typer.Exit(DataError.exit_code)

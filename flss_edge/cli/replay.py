"""`flss-edge replay`: a recorded drive to decisions, with no ROS and no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import (
    BundleArgument,
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OverwriteOption,
    PrecisionOption,
    SamplingOption,
    StrictOption,
    ThreadsOption,
    resolve_bundle,
)
from flss_edge.cli.output import Document, check_output, duration, emit, progress, say
from flss_edge.cli.replay_report import ReplayReport, document_of
from flss_runtime.errors import DataError, InferenceError, UsageError
from flss_runtime.sampling import DETERMINISTIC, LATENT

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.noise import NoiseSource
    from flss_runtime.replay import FrameSource
    from flss_runtime.replay.bag_writer import DecisionBag
    from flss_runtime.stream import StreamResult

_SHOWN_EVERY_S = 0.2
_ETA_EVERY = 0.05  # of the recording


def replay(
    bag: Annotated[
        Path,
        typer.Argument(help="Recorded drive: .mcap, rosbag2 folder or .db3, or a folder of pictures.", metavar="BAG"),
    ],
    bundle: BundleArgument = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Topic of images; by default the only one in the bag.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the decisions to this bag (.mcap, extra mcap).")
    ] = None,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Copy the images into the bag of -o too, to see them side by side.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw votes and latencies over time (.png, .svg, .pdf; extra plot).")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write the result to this file too (.json, .csv, .md or .txt)."),
    ] = None,
    engine: EngineOption = "ort",
    precision: PrecisionOption = "fp32",
    sampling: SamplingOption = LATENT,
    threads: ThreadsOption = None,
    strict: StrictOption = True,
    num_samples: NumSamplesOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the noise, by default 0: a replay can be repeated.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Noise key that `predict --record-key` stored, instead of a seed.")
    ] = None,
    steady: Annotated[
        str | None,
        typer.Option(
            "--steady",
            metavar="K/N[/S]",
            help="Also vote over frames: the class that K of the last N agree on, none older than S (0.5).",
        ),
    ] = None,
    form: FormatOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Decide for every frame of a recorded drive.

    The same recording, bundle and seed give the same votes. What cannot be read is counted and said; the exit code is
    then 7, after everything else was answered.
    """
    from flss_runtime.replay import open_frames

    _spare_recording(bag, [each for each in (output, plot, report) if each is not None])
    _check_outputs(output, with_images, plot, report, form, overwrite)
    if (bag / "manifest.json").exists():
        raise UsageError(f"{bag} is a bundle, not a recording", f"name the recording first: replay BAG {bag}")
    options = {"engine": engine, "precision": precision, "sampling": sampling, "threads": threads, "strict": strict}
    with open_frames(bag, topic) as frames:
        run = _Run(resolve_bundle(bundle), options, num_samples, _noise(seed, key, sampling), steady)
        with run.decisions_to(output, frames if with_images else None, overwrite) as target:
            result = run.through(frames, target)
    if output is not None:
        say(f"wrote {output}")
    seeded = key is None and sampling != DETERMINISTIC
    config = {**options, "topic": frames.topic.name, "seed": seed or 0 if seeded else None, "steady": steady}
    document = document_of(bag, result, run.bundle, config)
    _show(document, form, report, plot, overwrite)
    _finish(result)


def _spare_recording(bag: Path, outputs: Iterable[Path]) -> None:
    """Refuse an output in the place of the recording or a file of it, or among its files, even to overwrite it."""
    recording = os.path.realpath(bag)
    for output in outputs:
        target = os.path.realpath(output)
        files = bag.rglob("*") if os.path.exists(target) else ()
        if Path(target).is_relative_to(recording) or target in map(os.path.realpath, files):
            raise UsageError(
                f"{output} is the recording {bag}, or a file in it", "choose another output, outside of it"
            )


def _check_outputs(
    output: Path | None, with_images: bool, plot: Path | None, report: Path | None, form: Any, overwrite: bool
) -> None:
    """Refuse what could not be written later, before anything is opened."""
    from flss_runtime.atomic import refuse_existing

    if with_images and output is None:
        raise UsageError("--with-images needs the bag that they go to", "name it: -o decisions.mcap")
    if output is not None:
        from flss_runtime.replay.mcap_recording import require_mcap

        if output.suffix != ".mcap":
            raise UsageError(f"cannot write a bag to {output}", "name it .mcap; figures and tables go to --report")
        require_mcap()
        refuse_existing(output, overwrite)
    if plot is not None:
        from flss_edge.picture import check_picture

        check_picture(plot)
        refuse_existing(plot, overwrite)
    check_output(form, None, overwrite)
    if report is not None:
        check_output(None, report, overwrite)


def _noise(seed: int | None, key: Path | None, sampling: str) -> NoiseSource:
    from flss_runtime.noise import KeyedNoise, SeededNoise, read_key

    if sampling == DETERMINISTIC and (seed is not None or key is not None):
        raise UsageError("deterministic sampling has no noise to repeat", "drop --seed and --key")
    if key is None:
        return SeededNoise(seed or 0)
    if seed is not None:
        raise UsageError("--seed and --key were both given", "give the one that the run had")
    return KeyedNoise(read_key(key))


class _Run:
    """A bundle, ready to go through a recording."""

    def __init__(
        self, path: Path, options: dict[str, Any], num_samples: int | None, noise: NoiseSource, steady: str | None
    ) -> None:
        from flss_runtime.bundle import load_bundle
        from flss_runtime.drift import DriftMonitor, drift_reference

        self.bundle: Bundle = load_bundle(path)
        sampling = options["sampling"]
        self._policy = self.bundle.policy(num_samples, sampling)
        self._steady = None if steady is None else _temporal_vote(steady)
        self._drift = DriftMonitor(drift_reference(self.bundle, num_samples, sampling))
        self._options = {**options, "policy": self._policy, "noise": noise}

    def decisions_to(
        self, output: Path | None, images: FrameSource | None, overwrite: bool
    ) -> AbstractContextManager[DecisionBag | None]:
        """Open the bag of the decisions, if one is wanted, with the images' topic if they go there too."""
        if output is None:
            return nullcontext()
        from flss_runtime.replay.bag_writer import decision_bag

        policy = self._policy
        about = {
            "bundle": self.bundle.path.name,
            "bundle_sha256": self.bundle.digest,
            "class_names": "\n".join(self.bundle.class_names),
            "num_samples": str(policy.num_samples),
            "min_votes": str(policy.min_votes),
            "noise_scale": str(policy.noise_scale),
        }
        topic = None if images is None else images.topic
        return decision_bag(output, self.bundle.class_names, about, images=topic, overwrite=overwrite)

    def through(self, frames: FrameSource, target: DecisionBag | None) -> ReplayReport:
        """Decide for every frame."""
        from flss_runtime.opening import open_classifier
        from flss_runtime.replay import ReplaySummary, replay
        from flss_runtime.stream import Origin

        summary = ReplaySummary(self.bundle.class_names)
        with open_classifier(self.bundle, **self._options) as classifier, progress() as report:
            origin = Origin(
                engine=classifier.name,
                precision=self._options["precision"],
                sampling=self._options["sampling"],
                bundle=self.bundle.path.name,
                bundle_sha256=self.bundle.digest,
                noise_scale=self._policy.noise_scale,
            )
            results = replay(frames, classifier, origin, steady=self._steady)
            for frame, result in _watched(results, frames, report):
                summary.add(frame, result)
                self._drift.update(result.decision)
                if target is not None:
                    target.add(frame, result)
        if not summary.frames:
            problem = "; ".join(frames.damage) or f"{frames.topic.name} has no message"
            raise DataError(f"there is no frame to decide on: {problem}", "copy or record the bag again")
        return ReplayReport(summary, self._policy, self._drift.report(), list(frames.damage))


def _temporal_vote(text: str) -> Any:
    from flss_runtime.stream.temporal import TemporalVote

    needed, _, rest = text.partition("/")
    frames, _, age = rest.partition("/")
    try:
        return TemporalVote(int(frames), int(needed), float(age) if age else 0.5)
    except ValueError as error:
        fix = "write how many of how many frames have to agree, and how old they may be in seconds: --steady 4/5/0.5"
        raise UsageError(f"cannot read --steady {text}", fix) from error


def _watched(
    results: Iterable[tuple[Any, StreamResult]], frames: FrameSource, report: Callable[[str, float], None]
) -> Iterator[tuple[Any, StreamResult]]:
    """Pass the results on and show how far they are; the time left changes seldom, for a log keeps each line."""
    began = shown = time.monotonic()
    said = 0.0
    phase = f"replaying {frames.topic.name}"
    report(phase, 0.0)
    for item in results:
        yield item
        now = time.monotonic()
        if now - shown < _SHOWN_EVERY_S:
            continue
        shown, share = now, min(frames.share, 1.0)
        if share - said >= _ETA_EVERY:
            said = share
            phase = f"replaying {frames.topic.name}, {duration((now - began) * (1 / share - 1))} left"
        report(phase, share)


def _show(document: Document, form: Any, report: Path | None, plot: Path | None, overwrite: bool) -> None:
    emit(document, form, None)
    if report is not None:
        emit(document, None, report, overwrite)
    if plot is not None:
        from flss_edge.replay_plot import plot_replay

        plot_replay(document.results, document.config, plot, overwrite=overwrite)
        say(f"wrote {plot}")


def _finish(result: ReplayReport) -> None:
    """Say what was not answered, and end with its exit code."""
    from flss_runtime.decision import Status

    for problem in result.damage:
        say(problem)
    if result.summary.count(Status.FAULT):
        raise typer.Exit(InferenceError.exit_code)
    if result.damage or result.summary.count(Status.INVALID_INPUT):
        raise typer.Exit(DataError.exit_code)

"""`flss-edge bench`: what the samples cost on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.bench_comparison import Target, refuse_invalid, refuse_measuring, show_comparison
from flss_edge.cli.options import (
    BundleArgument,
    EngineOption,
    FormatOption,
    NumSamplesOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    SeedOption,
    StrictOption,
    ThreadsOption,
    resolve_bundle,
)
from flss_edge.cli.output import Document, Format, check_output, emit, progress, say
from flss_runtime.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from flss_runtime.benchmark import BenchResult
    from flss_runtime.profiles import Profile

COLUMNS = {
    "arm": "arm",
    "n": "frames",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "p99.9_ms": "p99.9 ms",
    "max_ms": "max ms",
    "overhead_percent": "overhead %",
    "overhead_low_percent": "95 % from",
    "overhead_high_percent": "to",
}


def bench(
    bundle: BundleArgument = None,
    engine: EngineOption = "ort",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
    strict: StrictOption = True,
    num_samples: NumSamplesOption = None,
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="What to compare with the deterministic network, such as n1,n100,n100-logit; by default all that the "
            "bundle has graphs for: n1, n10, n100, n1000 and n100-two-graphs, -logit and -deterministic.",
        ),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Add a second copy of the deterministic network: the error of the bench itself."
        ),
    ] = False,
    frame: Annotated[
        str | None,
        typer.Option("--frame", help="Begin at camera frames of this size, such as 640x480, and resize them."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option("--batches", help="Sizes for the throughput, such as 1,8,32, or none; by default the profile's."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="quick (a first look) or standard (for publication).")
    ] = "standard",
    seed: SeedOption = 0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Measure nothing: compare two results, written as JSON by -o.", metavar="A B"),
    ] = None,
    assert_overhead: Annotated[
        str | None,
        typer.Option("--assert-overhead", help="Exit 1 if the upper end of the overhead's interval is above, e.g. 2%."),
    ] = None,
    allow_invalid: Annotated[
        bool, typer.Option("--allow-invalid", help="Exit 0 although the machine was too noisy for the figures.")
    ] = False,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the result beside the file of -o, as .png (extra plot).")
    ] = False,
) -> None:
    """Measure what the samples cost on this machine.

    Times the deterministic network and classifiers, and prints their overhead with its 95 % interval.
    """
    if compare is not None:
        measuring = {
            "BUNDLE": bundle,
            "--engine": engine != "ort",
            "--precision": precision != "fp32",
            "--threads": threads,
            "--no-strict": not strict,
            "-n": num_samples is not None,
            "--arms": arms is not None,
            "--control": control,
            "--frame": frame is not None,
            "--batches": batches is not None,
            "--profile": profile != "standard",
            "--seed": seed,
            "--assert-overhead": assert_overhead is not None,
        }
        refuse_measuring([name for name, given in measuring.items() if given])
    target = _target(form, output, overwrite, plot)
    if compare is not None:
        show_comparison(compare, target, allow_invalid)
        return
    limit = None if assert_overhead is None else parse_percent(assert_overhead)
    options = {
        "engine": engine,
        "precision": precision,
        "threads": threads,
        "strict": strict,
        "num_samples": num_samples,
        "camera": None if frame is None else parse_size(frame),
        "profile": _profile(profile, batches),
        "seed": seed,
    }
    result = _measure(resolve_bundle(bundle), arms, control, options)
    _show(result, target)
    judge(result, limit, allow_invalid)


def _target(form: Format | None, output: Path | None, overwrite: bool, plot: bool) -> Target:
    """Refuse what could not be written later, before anything is measured."""
    check_output(form, output, overwrite)
    if not plot:
        return Target(form, output, overwrite, None)
    if output is None:
        raise UsageError("--plot needs the file that the picture goes beside", "name it: -o result.json")
    from flss_edge.picture import require_matplotlib
    from flss_runtime.atomic import refuse_existing

    require_matplotlib()
    picture = output.with_suffix(".png")
    refuse_existing(picture, overwrite)
    return Target(form, output, overwrite, picture)


def _profile(name: str, batches: str | None) -> Profile:
    from flss_runtime.profiles import find_profile

    profile = find_profile(name)
    return profile if batches is None else replace(profile, batches=parse_batches(batches))


def _measure(path: Path, arms: str | None, control: bool, options: dict[str, Any]) -> BenchResult:
    from flss_runtime.arm_names import CONTROL, all_arms
    from flss_runtime.benchmark import run_benchmark
    from flss_runtime.bundle import load_bundle

    bundle = load_bundle(path)
    names = (
        arms.split(",")
        if arms
        else all_arms(bundle, options["num_samples"] or bundle.num_samples, options["precision"])
    )
    with progress() as report:
        return run_benchmark(bundle, arms=[*names, *([CONTROL] if control else [])], progress=report, **options)


def _show(result: BenchResult, target: Target) -> None:
    from flss_runtime.bench_report import notes, rows, verdict
    from flss_runtime.precision_check import check_precision

    fields = result.to_json()
    checked = check_precision(result.config["engine_facts"], result.config["precision"], strict=False)
    lines = [*notes(fields), *checked.notes, *checked.doubts]
    if result.config["images"]["real"] is not True:
        lines.append("the bundle's images are not known to be real: export with --data to time real ones")
    document = Document(
        command="bench",
        columns=COLUMNS,
        rows=rows(fields),
        results=fields["results"],
        artifact=fields["artifact"],
        environment=fields["environment"],
        config=fields["config"],
        validity=fields["validity"],
        notes=lines,
    )
    emit(document, target.form, target.output, target.overwrite)
    if target.picture is not None:
        from flss_edge.bench_plot import plot_benchmark

        plot_benchmark(fields, target.picture, overwrite=target.overwrite)
        say(f"wrote {target.picture}")
    say(verdict(fields))


def parse_percent(text: str) -> float:
    """Return "2%", "2 %" or "2" as 2.0.

    Raises:
        UsageError: it is no number of at least 0.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--assert-overhead {text!r} is no percentage", "write for example --assert-overhead 2%")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """Return "640x480" as (640, 480).

    Raises:
        UsageError: it is no such size, or larger than 8192 either way.
    """
    width, _, height = text.lower().partition("x")
    digits = (width + height).isascii() and width.isdecimal() and height.isdecimal()
    if not (digits and 1 <= int(width) <= 8192 and 1 <= int(height) <= 8192):
        raise UsageError(f"--frame {text!r} is no size of a camera frame", "write for example --frame 640x480")
    return int(width), int(height)


def parse_batches(text: str) -> tuple[int, ...]:
    """Return "1,8" as (1, 8), and "none" as ().

    Raises:
        UsageError: it is neither.
    """
    if text == "none":
        return ()
    sizes = text.split(",")
    if not all(size.isascii() and size.isdecimal() and 1 <= int(size) <= 4096 for size in sizes):
        raise UsageError(f"--batches {text!r} are no batch sizes", "write for example --batches 1,8,32, or none")
    return tuple(dict.fromkeys(int(size) for size in sizes))


def judge(result: BenchResult, limit: float | None, allow_invalid: bool) -> None:
    """Refuse figures that must not be quoted, then those above the limit.

    Args:
        result: a finished benchmark.
        limit: highest overhead in percent, for the upper end of the primary arm's 95 % interval; None asserts nothing.
        allow_invalid: judge the figures although the machine was too noisy for them.

    Raises:
        BenchmarkInvalid: the result has validity flags.
        CheckFailed: the overhead may be above the limit.
    """
    refuse_invalid(result.flags, allow_invalid)
    if limit is None:
        return
    row = result.overhead(result.config["primary"])
    highest = row["percent"] if row["interval"] is None else (row["interval"][1] - 1) * 100
    if highest > limit:
        raise CheckFailed(
            f"{row['arm']} costs up to {highest:.2f} %, above the {limit:g} % asserted",
            "look at the stages in the result, or assert what this machine can hold",
        )

"""`flss-edge bench`: what the samples cost on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

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
from flss_edge.cli.output import Document, check_output, emit, progress, say
from flss_runtime.errors import BenchmarkInvalid, CheckFailed, UsageError

if TYPE_CHECKING:
    from flss_runtime.benchmark import BenchResult

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
    profile: Annotated[
        str, typer.Option("--profile", help="quick (a first look) or standard (for publication).")
    ] = "standard",
    seed: SeedOption = 0,
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
) -> None:
    """Measure what the samples cost on this machine.

    Times the deterministic network, one sample and N samples, and prints the overhead with its 95 % interval.
    """
    from flss_runtime.bench_report import rows, verdict
    from flss_runtime.benchmark import run_benchmark
    from flss_runtime.bundle import load_bundle

    check_output(form, output, overwrite)
    limit = None if assert_overhead is None else parse_percent(assert_overhead)
    loaded = load_bundle(resolve_bundle(bundle))
    samples = loaded.num_samples if num_samples is None else num_samples
    with progress() as report:
        result = run_benchmark(
            loaded,
            engine,
            precision=precision,
            threads=threads,
            strict=strict,
            num_samples=(1, samples),
            profile=profile,
            seed=seed,
            progress=report,
        )
    fields = result.to_json()
    document = Document(
        command="bench",
        columns=COLUMNS,
        rows=rows(fields),
        results=fields["results"],
        artifact=fields["artifact"],
        environment=fields["environment"],
        config=fields["config"],
        validity=fields["validity"],
        notes=_notes(result),
    )
    emit(document, form, output, overwrite)
    say(verdict(fields))
    judge(result, samples, limit, allow_invalid)


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


def _notes(result: BenchResult) -> list[str]:
    from flss_runtime.precision_check import check_precision

    stages = result.results["stages_ms"] or {}
    notes = [
        f"stages of {arm}, median ms: " + ", ".join(f"{stage} {value:.3f}" for stage, value in times.items())
        for arm, times in stages.items()
    ]
    checked = check_precision(result.config["engine_facts"], result.config["precision"], strict=False)
    notes += [*checked.notes, *checked.doubts]
    if result.config["images"]["real"] is not True:
        notes.append("the bundle's images are not known to be real: export with --data to time real ones")
    return notes


def judge(result: BenchResult, samples: int, limit: float | None, allow_invalid: bool) -> None:
    """Refuse figures that must not be quoted, then those above the limit.

    Args:
        result: a finished benchmark.
        samples: N of the arm that `limit` is about.
        limit: highest overhead in percent, for the upper end of its 95 % interval; None asserts nothing.
        allow_invalid: judge the figures although the machine was too noisy for them.

    Raises:
        BenchmarkInvalid: the result has validity flags.
        CheckFailed: the overhead may be above the limit.
    """
    if not result.valid and not allow_invalid:
        reasons = "; ".join(flag["detail"] for flag in result.flags)
        raise BenchmarkInvalid(
            f"these figures must not be quoted: {reasons}",
            "quiet the machine and use --profile standard, or pass --allow-invalid to look at them all the same",
        )
    if limit is None:
        return
    row = result.overhead(samples)
    highest = row["percent"] if row["interval"] is None else (row["interval"][1] - 1) * 100
    if highest > limit:
        raise CheckFailed(
            f"{samples} samples cost up to {highest:.2f} %, above the {limit:g} % asserted",
            "look at the stages in the result, or assert what this machine can hold",
        )

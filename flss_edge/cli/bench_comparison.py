"""`flss-edge bench --compare`: two results against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flss_edge.cli.output import Document, Format, emit
from flss_runtime.errors import BenchmarkInvalid, UsageError

COLUMNS = {
    "arm": "arm",
    "first_ms": "first ms",
    "second_ms": "second ms",
    "change_percent": "change %",
    "change_low_percent": "95 % from",
    "change_high_percent": "to",
    "first_overhead_percent": "first overhead %",
    "second_overhead_percent": "second overhead %",
    "overhead_change_points": "change, points",
    "overhead_change_low_points": "95 % from ",
    "overhead_change_high_points": "to ",
}


@dataclass(frozen=True)
class Target:
    """Where the result goes: form, file and picture, None for none."""

    form: Format | None
    output: Path | None
    overwrite: bool
    picture: Path | None


def refuse_measuring(given: list[str]) -> None:
    """Refuse what a comparison would ignore: who asserts a limit on it must not believe that it held.

    Args:
        given: options of the measurement that were given, and BUNDLE.

    Raises:
        UsageError: there are any.
    """
    if given:
        raise UsageError(
            f"--compare measures nothing, so it takes no {', '.join(given)}",
            "leave it out, or give it to the benchmarks themselves",
        )


def show_comparison(paths: tuple[Path, Path], target: Target, allow_invalid: bool) -> None:
    """Compare two results and print the table.

    Args:
        paths: the reference, and what is compared with it.
        target: where the table goes.
        allow_invalid: accept results that are flagged.

    Raises:
        UsageError: the two did not measure the same thing.
        DataError: a file is not the result of a benchmark.
        BenchmarkInvalid: one of them has validity flags.
    """
    from flss_runtime.bench_compare import compare, differences, flags_of_both, read_benchmark

    if target.picture is not None:
        raise UsageError("--compare draws nothing", "leave --plot out, and give it to the benchmarks themselves")
    first, second = (read_benchmark(path) for path in paths)
    flags = flags_of_both(first, second)
    table = compare(first, second)
    document = Document(
        command="bench",
        columns=COLUMNS,
        rows=table,
        artifact=first["artifact"],
        config={"compare": [path.name for path in paths]},
        validity={"valid": not flags, "flags": flags},
        notes=[f"differs: {line}" for line in differences(first, second)],
    )
    emit(document, target.form, target.output, target.overwrite)
    refuse_invalid(flags, allow_invalid)


def refuse_invalid(flags: list[dict[str, str]], allow_invalid: bool) -> None:
    """Refuse figures that must not be quoted.

    Raises:
        BenchmarkInvalid: there are flags, and they are not allowed.
    """
    if flags and not allow_invalid:
        raise BenchmarkInvalid(
            f"these figures must not be quoted: {'; '.join(item['detail'] for item in flags)}",
            "quiet the machine and use --profile standard, or pass --allow-invalid to look at them all the same",
        )

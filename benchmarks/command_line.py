"""What the benchmarks' command lines share: the recorded command, and how one that times is run to its exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flss_runtime.atomic import atomic_write, refuse_existing
from flss_runtime.errors import BenchmarkInvalid, EngineUnavailable, FLSSError, UsageError
from flss_runtime.machine import cpu_model
from flss_runtime.validity import Flag, machine_flags, profile_flags, run_flags

Result = dict[str, Any]
"""What is written as JSON."""


def command_of(script: str, options: argparse.Namespace) -> str:
    """Return the command with every option, files by their names only: where they lie is nobody's business."""
    words = ["python", f"benchmarks/{script}"]
    for name, value in vars(options).items():
        for item in value if isinstance(value, list) else [value]:
            if item is None or item is False:
                continue
            if name not in ("bundle", "network"):  # the arguments that have no flag
                words.append(f"--{name.replace('_', '-')}")
            if item is not True:
                words.append(item.name if isinstance(item, Path) else str(item))
    return shlex.join(words)


def run_timing(
    script: str,
    arguments: list[str] | None,
    *,
    parse: Callable[[list[str]], argparse.Namespace],
    measure: Callable[[argparse.Namespace], Result],
    plot: Callable[[Result, Path], None],
    summary: Callable[[Result], str],
    judge: Callable[[Result], None] = lambda result: None,
) -> int:
    """Measure, write the result and its plot, print the summary, and refuse to call a flagged result valid.

    Args:
        script: its file's name, for the recorded command.
        arguments: of the command line; None takes the process's own.
        parse: arguments -> options, among them those of `add_result_options`.
        measure: options -> the result without the command; flags are in `validity`.
        plot: draws the result into a file.
        summary: what is printed about the result.
        judge: raises CheckFailed for a result that fails; it is written by then, for it is the evidence.

    Returns:
        The exit code: 1 a check failed, 5 not valid, else FLSSError's.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        result = {"schema_version": 1, "command": command_of(script, options), **measure(options)}
        with atomic_write(options.output, overwrite=options.overwrite) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot(result, options.output.with_suffix(".png"))
        print(summary(result))
        judge(result)
        if result["validity"]["flags"] and not options.allow_invalid:
            details = "; ".join(item["detail"] for item in result["validity"]["flags"])
            raise BenchmarkInvalid(details, "Repeat on a quiet machine; --allow-invalid accepts the result as flagged.")
    except FLSSError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def timing_flags(
    options: argparse.Namespace, environment: Mapping[str, Any], counters: Sequence[Mapping[str, float | None]]
) -> list[Flag]:
    """Return what speaks against times that were taken: a first look, the machine, and what else ran on it.

    Args:
        options: with `quick` and `threads`.
        environment: what `describe_environment` returned before.
        counters: what `Snapshot.until` returned, one a process start.
    """
    return [
        *profile_flags("quick" if options.quick else "standard"),
        *machine_flags(environment, options.threads),
        *run_flags(counters, environment["load_average"], environment["logical_cores"]),
    ]


def camera_size(text: str) -> tuple[int, int]:
    """Return "640x480" as (640, 480).

    Raises:
        UsageError: it is no such size.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--frame is {text}", "Give width and height in pixels, such as 640x480.")
    return int(width), int(height)


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add where the result goes, and whether a flagged one is accepted."""
    parser.add_argument("--allow-invalid", action="store_true", help="exit 0 also when the result is flagged")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON; the plot goes beside it as .png")


def require_at_least(options: argparse.Namespace, **least: int) -> None:
    """Raise UsageError if the option of that name is smaller."""
    for name, value in least.items():
        if getattr(options, name) < value:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(options, name)}", f"Give at least {value}.")


def prepare(options: argparse.Namespace) -> None:
    """Refuse what would fail after minutes, an existing result or a missing device, and set the threads if given."""
    import torch  # here, because benchmarks of the runtime have to do without

    refuse_existing(options.output, options.overwrite)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("torch sees no GPU", "Use --device cpu.")
    if options.threads:
        torch.set_num_threads(options.threads)


def describe_device(name: str) -> dict[str, Any]:
    """Return what torch says about the device that computes."""
    import torch  # here, because benchmarks of the runtime have to do without

    device = torch.device(name)
    if device.type != "cuda":
        return {"type": device.type, "name": cpu_model()}
    found = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": found.name,
        "memory_mib": found.total_memory // 2**20,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }

"""Pictures of what flss-edge wrote: `python -m flss_edge.plots FILE -o PICTURE` (extra `plot`).

FILE is the JSON of `flss-edge bench`, or the log.jsonl of a training run (flss_edge/training_plot.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flss_edge.bench_plot import plot_benchmark
from flss_edge.training_log import read_log
from flss_edge.training_plot import plot_training
from flss_runtime.errors import DataError, FLSSError


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture of one result: the JSON of a benchmark, or the log.jsonl of a training run."""
    parser = argparse.ArgumentParser(prog="python -m flss_edge.plots", description=main.__doc__)
    parser.add_argument("result", type=Path, help="JSON written by flss-edge bench, or log.jsonl of flss-edge train")
    parser.add_argument("-o", "--output", type=Path, help="picture to write (default: beside the file, .png)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    options = parser.parse_args(arguments)
    target = options.output or options.result.with_suffix(".png")
    try:
        if options.result.suffix == ".jsonl":
            title = options.result.resolve().parent.name
            plot_training(read_log(options.result), target, title=title, overwrite=options.overwrite)
        else:
            plot_benchmark(_read(options.result), target, overwrite=options.overwrite)
    except FLSSError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(target)
    return 0


def _read(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({error})", "pass a file written by flss-edge bench -o"
        ) from error
    if not isinstance(result, dict) or "arms" not in result.get("results", {}):
        raise DataError(f"{path} is not the result of a benchmark", "pass a file written by flss-edge bench -o")
    return result


if __name__ == "__main__":
    raise SystemExit(main())

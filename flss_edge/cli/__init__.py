"""The command line: `flss-edge COMMAND`.

Every command is one module beside this one; heavy libraries are imported inside the commands, so that those of a robot
(predict, replay, calibrate, verify, prepare, bench, inspect, doctor) work where torch and onnx are absent.

Exit codes: 0 ok, 1 a check ran and failed, 2 usage, 3 artefact cannot be loaded or verified, 4 inference fault,
5 benchmark invalid, 6 engine not available, 7 data unreadable or output not writable, 70 a defect of this program,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from flss_edge import __version__
from flss_edge.cli import (
    bench,
    calibrate,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    predict,
    prepare,
    replay,
    train,
    verify,
)
from flss_edge.cli.output import relay_log, report_error
from flss_runtime.errors import FLSSError, OutputError

_INTERRUPTED = 130
_TERMINATED = 143
_DEFECT = 70  # EX_SOFTWARE: never confused with 1, "a check ran and failed"

app = typer.Typer(
    name="flss-edge",
    help="Train, export and run classifiers that answer or decline to answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain messages: a log or a grep must find them unwrapped
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"flss-edge {__version__}")
        raise typer.Exit()


@app.callback()
def _global_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, export and run classifiers that answer or decline to answer."""


for _command in (
    train.train,
    evaluate.evaluate,
    export.export,
    inspect.inspect,
    verify.verify,
    prepare.prepare,
    calibrate.calibrate,
    predict.predict,
    replay.replay,
    bench.bench,
    doctor.doctor,
    demo.demo,
):
    app.command()(_command)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143), so that half-written files are removed on the way out."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: a host application owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to stderr as `error: …` and `fix: …`.

    Args:
        arguments: what follows `flss-edge`; the process's own arguments by default.
    """
    relay_log()
    try:
        with _exit_on_sigterm():
            app(args=None if arguments is None else list(arguments), prog_name="flss-edge")
    except FLSSError as error:
        report_error(error)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as leaving:
        return _code_of(leaving)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        report_error(OutputError(f"{error.strerror or error}{where}", "check the path, its permissions and free space"))
        return OutputError.exit_code
    except Exception:
        traceback.print_exc()
        print("internal error: this is a defect of flss-edge; please report the lines above", file=sys.stderr)
        return _DEFECT
    return 0


def _code_of(leaving: KeyboardInterrupt | SystemExit) -> int:
    code = _INTERRUPTED if isinstance(leaving, KeyboardInterrupt) else leaving.code
    if code == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    elif code == _TERMINATED:
        print("terminated", file=sys.stderr)
    return code if isinstance(code, int) else int(code is not None)

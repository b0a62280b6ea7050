"""How every command prints: data on stdout (or in the file of `-o`), everything else on stderr."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from flss_edge import __version__
from flss_runtime.errors import FLSSError, OutputError, UsageError

SCHEMA_VERSION = 1
_PIPE_WIDTH = 240  # columns: a piped table must not be folded to the 80 of an imagined terminal
_CLEAR_LINE = "\r\x1b[K"  # on a terminal: over what is left of a progress line
_STYLES = {
    **dict.fromkeys(("accepted", "ok", "passed"), "green"),
    **dict.fromkeys(("low_vote", "inconclusive"), "yellow"),
    **dict.fromkeys(("invalid_input", "fault", "FAILED"), "red"),
}

Cell: TypeAlias = "str | int | float | bool | None"


class Format(str, Enum):
    """Values of `--format`."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


@dataclass(frozen=True)
class Document:
    """One command's result.

    Attributes:
        command: its name.
        columns: key of a row -> heading of its column; the order and the selection of table, CSV and Markdown.
        rows: the results; JSON keeps every key of a row, the other formats those of `columns`.
        results: what JSON holds under "results" where it is more than the rows.
        artifact: what was used: path and digest of the bundle.
        environment: machine and versions; looked up for JSON where it is left empty.
        validity: reasons why the figures must not be quoted; empty when there are none.
        notes: lines below a table, and in JSON; CSV leaves them out.
    """

    command: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Cell]]
    results: Any = None
    artifact: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    validity: Any = ()
    notes: Sequence[str] = ()


def emit(document: Document, form: Format | None, output: Path | None, overwrite: bool = False) -> None:
    """Print the document, or write it to `output` in one atomic step.

    Args:
        document: what to print.
        form: the format; by default the one `output`'s suffix names, else a table.
        output: a file instead of stdout.
        overwrite: replace an existing file.

    Raises:
        UsageError: `output` has no suffix that names a format and no format was given.
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    if output is None:
        _to_stdout(_render(document, form or Format.table, sys.stdout.isatty(), sys.stdout.encoding or "ascii"))
        return
    from flss_runtime.atomic import atomic_write

    text = _render(document, form or _format_of(output), False, "utf-8")
    with atomic_write(output, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"wrote {output}")


def check_output(form: Format | None, output: Path | None, overwrite: bool) -> None:
    """Refuse an output that could not be written later, before the work is done.

    Raises:
        UsageError: as `emit`.
        OutputError: as `emit`, where it can be known.
    """
    if output is None:
        if sys.stdout is None:  # started with it closed
            raise OutputError("standard output is closed", "open it, or write to a file with -o")
        return
    from flss_runtime.atomic import refuse_existing

    if form is None:
        _format_of(output)
    refuse_existing(output, overwrite)


def say(text: str) -> None:
    """Print progress or a verdict on stderr."""
    if sys.stderr is None:  # started with it closed
        return
    line = _printable("\n".join(map(_visible, text.split("\n"))), sys.stderr.encoding or "ascii")
    _to_stderr(f"{_CLEAR_LINE}{line}\n" if sys.stderr.isatty() else f"{line}\n")


class _StderrHandler(logging.Handler):
    """Shows what the runtime logs the way the commands show their own progress."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def relay_log() -> None:
    """Show what the runtime says (an engine's choice, a long build, a fallback) on stderr; once a process."""
    log = logging.getLogger("flss_runtime")
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        log.addHandler(_StderrHandler(logging.INFO))
        log.setLevel(logging.INFO)


def report_error(error: FLSSError) -> None:
    """Print an error and its remedy on stderr."""
    say(f"error: {error.problem}\n  fix: {error.fix}")


def duration(seconds: float) -> str:
    """Return a time in words, as exact as a time left can be: "45 s", "12 min", "3.5 h", "2.1 days"."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """Yield `report(phase, share)`: one line on stderr that a terminal keeps rewriting; a log gets each phase once.

    No thread draws it, because a benchmark's frames would feel one.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    shown = ""

    def report(phase: str, share: float) -> None:
        nonlocal shown
        if terminal:
            line = _printable(f"{share:4.0%} {_visible(phase):.70}", sys.stderr.encoding or "ascii")
            _to_stderr(f"{_CLEAR_LINE}{line}")
        elif phase != shown:
            say(phase)
        shown = phase

    try:
        yield report
    finally:
        if terminal and shown:
            _to_stderr(_CLEAR_LINE)


def _format_of(output: Path) -> Format:
    try:
        return Format({".txt": "table"}.get(output.suffix.lower(), output.suffix.lower().lstrip(".")))
    except ValueError:
        raise UsageError(
            f"cannot tell the format of {output} from its suffix {output.suffix!r}",
            "name it .json, .csv, .md or .txt, or add --format",
        ) from None


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has had enough
        _silence_stdout()
    except OSError as error:
        _silence_stdout()
        raise OutputError(f"cannot write to standard output: {error.strerror}", "free some space or use -o") from error


def _to_stderr(text: str) -> None:
    """Write a message; a log that is full or gone must not change what the command does or its exit code."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _silence_stdout() -> None:
    """Send what is left in the buffer nowhere: the interpreter's own flush at exit would fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _render(document: Document, form: Format, terminal: bool, encoding: str) -> str:
    if form is Format.json:
        return json.dumps(_json_document(document), indent=2, default=str) + "\n"
    if form is Format.table:
        return _printable(_table(document, terminal, encoding), encoding)
    return _printable(_csv(document) if form is Format.csv else _markdown(document), encoding)


def _json_document(document: Document) -> dict[str, Any]:
    from flss_runtime.environment import describe_environment

    return {
        "schema_version": SCHEMA_VERSION,
        "tool": "flss-edge",
        "tool_version": __version__,
        "command": document.command,
        "artifact": dict(document.artifact),
        "environment": dict(document.environment) or describe_environment(),
        "config": dict(document.config),
        "results": list(document.rows) if document.results is None else document.results,
        "validity": document.validity,
        "notes": list(document.notes),
    }


def _csv(document: Document) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(document.columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(document.rows)
    return buffer.getvalue()


def _markdown(document: Document) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    columns = _filled_columns(document)
    lines = [line(columns.values()), line("---" for _ in columns)]
    lines += [line(_text(row.get(key)) for key in columns) for row in document.rows]
    lines += ["", *(f"- {note}" for note in document.notes)] if document.notes else []
    return "\n".join(lines) + "\n"


def _table(document: Document, terminal: bool, encoding: str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    unicode = "utf" in encoding.lower()
    table = Table(box=box.SIMPLE_HEAD if unicode else box.ASCII)
    columns = _filled_columns(document)
    for key, heading in columns.items():
        numeric = all(isinstance(row.get(key), int | float | None) for row in document.rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in document.rows:
        # Text, not str: a file name such as "[red].png" is no markup.
        table.add_row(*(Text(_text(row.get(key)), style=_STYLES.get(str(row.get(key)), "")) for key in columns))
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=terminal, width=None if terminal else _PIPE_WIDTH).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*lines, *document.notes]) + "\n"


def _filled_columns(document: Document) -> dict[str, str]:
    """Return the columns that say something: most runs have no reasons to show."""
    return {key: name for key, name in document.columns.items() if any(row.get(key) != "" for row in document.rows)}


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else _visible(str(cell))


def _visible(text: str) -> str:
    """Escape control characters: a file name must not steer the terminal or break a row."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _printable(text: str, encoding: str) -> str:
    """Escape what the stream cannot encode: a file name may hold any bytes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)

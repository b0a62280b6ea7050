"""How an evaluation is shown: as a table, as JSON, and as a folder with a report and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flss_edge.cli.output import SCHEMA_VERSION, Document, say
from flss_edge.robustness.report import COLUMNS, markdown, notes, table_rows
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import UsageError


def document_of(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    artifact: Mapping[str, Any],
    environment: Mapping[str, Any],
    more_notes: Sequence[str] = (),
) -> Document:
    """Return the result as the command prints it."""
    result = {"config": config, "environment": environment, "artifact": artifact, "results": results}
    return Document(
        command="evaluate",
        columns=COLUMNS,
        rows=table_rows(result),
        results=results,
        artifact=artifact,
        environment=environment,
        config=config,
        notes=[*notes(result), *more_notes],
    )


def write_reports(folder: Path, document: Document, command: str) -> dict[str, Any]:
    """Write result.json, report.md and, where matplotlib is, the plots; return the result.

    Raises:
        OutputError: the folder cannot be written.
    """
    result = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "artifact": document.artifact,
        "environment": document.environment,
        "config": document.config,
        "results": document.results,
        "notes": list(document.notes),
    }
    with atomic_write(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(markdown(result), encoding="utf-8")
    try:
        from flss_edge.robustness.plots import draw_all

        draw_all(result, folder)
    except UsageError as error:
        say(f"no plots: {error.problem} ({error.fix})")
    say(f"wrote {folder}/report.md, result.json and the plots")
    return result

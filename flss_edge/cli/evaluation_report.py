"""How an evaluation is shown: as a table, as JSON, and as a folder with a report and its pictures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flss_edge.cli.output import SCHEMA_VERSION, Document, say
from flss_edge.robustness.report import COLUMNS, markdown, notes, table_rows
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import UsageError

if TYPE_CHECKING:
    from flss_edge.cli.evaluation_options import EvaluationOptions
    from flss_edge.robustness.campaign import Campaign
    from flss_edge.robustness.state import State

FLAGS = {"suites": "--suite", "settings": "--set", "sources": "--transfer-from", "checks": "--checks"}
NOT_RECORDED = ("engine", "overwrite", "replay")


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


def write_reports(folder: Path, document: Document, command: str) -> None:
    """Write result.json, report.md and, where matplotlib is, the plots.

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


def draw_examples(folder: Path, campaign: Campaign, state: State, class_names: Sequence[str]) -> None:
    """Draw what the first classifier answered to images of the first batch, under the attack that aims at it best."""
    from flss_edge.robustness.gallery import examples_of, plot_gallery

    classifier = campaign.classifiers[0].name
    names = [attack.name for attack in campaign.plan if attack.bounded and attack.epsilon > 0]
    aimed = [name for name in names if name == f"{classifier}:accepted-wrong"] or names[:1]
    clean, attacked = (state.load(name, 0) for name in ("clean", *aimed[:1]))
    if not aimed or clean is None or attacked is None:
        return
    examples = examples_of(
        clean.images.transpose(0, 2, 3, 1),
        attacked.images.transpose(0, 2, 3, 1),
        campaign.images.labels[: len(clean.images)],
        (clean.answers[classifier], attacked.answers[classifier]),
        class_names,
    )
    try:
        plot_gallery(examples, folder / "examples.png", title=f"{classifier} under {aimed[0]}")
    except UsageError:  # matplotlib is absent, and the plots have said so
        return


def command_of(path: Path, options: EvaluationOptions) -> str:
    """Return the command with every option that was used, files by their names only: where they lie is no matter."""
    words = ["flss-edge", "evaluate", path.name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in NOT_RECORDED or value in (None, (), False) or (field.name == "eot" and value == 0):
            continue
        flag = FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")
        for each in value if isinstance(value, tuple) else (value,):
            words += [flag] if each is True else [flag, _written(field.name, each)]
    return shlex.join(words)


def _written(name: str, value: Any) -> str:
    if name == "epsilon":
        return f"{255 * value:g}/255"
    return value.name if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)

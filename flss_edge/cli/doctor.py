"""`flss-edge doctor`: can this machine classify, and can its timings be trusted?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flss_edge.cli.options import FormatOption, OutputOption, OverwriteOption
from flss_edge.cli.output import Document, Format, check_output, emit, say
from flss_runtime.errors import CheckFailed, UsageError

COLUMNS = {"status": "status", "name": "check", "detail": "found", "fix": "what to do"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Check devices, drivers, libraries, engines and clocks of this machine.

    Every engine runs a small graph. Exit 1 if no image could be classified here.
    """
    from flss_runtime.diagnosis import diagnose

    if as_json:
        if form is not None and form is not Format.json:
            raise UsageError(f"--json contradicts --format {form.value}", "give one of them")
        form = Format.json
    check_output(form, output, overwrite)
    say("trying every engine on a small graph")
    found = diagnose()
    document = Document(
        command="doctor",
        columns=COLUMNS,
        rows=[asdict(check) for check in found.checks],
        results=found.to_json(),
    )
    emit(document, form, output, overwrite)
    failed = [check for check in found.checks if check.status == "fail"]
    if failed:
        names = ", ".join(check.name for check in failed)
        raise CheckFailed(f"this machine cannot classify yet: {names}", failed[0].fix)
    say("this machine can classify")

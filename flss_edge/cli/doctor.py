"""`flss-edge doctor`: can this machine classify, and can its timings be trusted?"""

from __future__ import annotations

from dataclasses import asdict

from flss_edge.cli.options import FormatOption, OutputOption, OverwriteOption
from flss_edge.cli.output import Document, check_output, emit, say
from flss_runtime.errors import CheckFailed

COLUMNS = {"status": "status", "name": "check", "detail": "found", "fix": "what to do"}


def doctor(form: FormatOption = None, output: OutputOption = None, overwrite: OverwriteOption = False) -> None:
    """Check libraries, engines and this machine.

    Exit 1 if no image could be classified here.
    """
    from flss_runtime.environment import diagnose

    check_output(form, output, overwrite)
    checks = diagnose()
    document = Document(
        command="doctor",
        columns=COLUMNS,
        rows=[asdict(check) for check in checks],
    )
    emit(document, form, output, overwrite)
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        names = ", ".join(check.name for check in failed)
        raise CheckFailed(f"this machine cannot classify yet: {names}", failed[0].fix)
    say("this machine can classify")

"""The command line among other processes: its streams, its signals, its exit codes, and libraries that are absent."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_edge.cli import main
from flss_edge.cli.output import Document, emit

Runner = Callable[..., Any]
COMMANDS = ("train", "evaluate", "calibrate", "export", "verify", "bench", "predict", "inspect", "doctor", "demo")
ENTRY = "import sys; from flss_edge.cli import main; sys.exit(main())"


def as_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTRY, *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, check=False, **{"capture_output": True, **options})


def test_no_color_is_honoured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document("predict", {"status": "status"}, [{"status": "accepted"}])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    emit(document, None, None)
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    emit(document, None, None)
    assert "\x1b[3" not in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(bundle: Path, labelled_pictures: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENTRY, "predict", str(bundle), str(labelled_pictures)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in errors and "Exception ignored" not in errors


def test_a_file_name_cannot_steer_the_terminal(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    shutil.copy(labelled_pictures / "cat" / "00.png", "\x1b[31m\nred.png")
    for form in ("table", "md"):
        result = run("predict", bundle, "\x1b[31m\nred.png", "--format", form)
        assert result.code == 0 and "\\x1b[31m\\x0ared.png" in result.out
    result = run("inspect", "\x1b[31m")
    assert result.code == 3 and "\x1b" not in result.err


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full"])
def test_a_lost_log_changes_no_exit_code(closing: str, bundle: Path, labelled_pictures: Path) -> None:
    for arguments, code in ((["predict", str(bundle), str(labelled_pictures)], 0), (["inspect", "nothing"], 3)):
        command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", ENTRY, *arguments]
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == code


def test_a_closed_stdout_is_reported(bundle: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", ENTRY, "inspect", str(bundle)]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert result.returncode == 7 and "fix:" in result.stderr


def test_a_full_disk_behind_stdout_is_reported() -> None:
    with open("/dev/full", "w") as full:
        result = as_process("doctor", "--format", "json", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 7
    assert "standard output" in result.stderr and "fix:" in result.stderr and "Exception ignored" not in result.stderr


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_without_a_traceback(
    bundle: Path, sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ENTRY, "bench", str(bundle), "--profile", "quick", "-o", str(tmp_path / "r.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first phase has begun
        time.sleep(0.2)
        process.send_signal(sent)
        errors = process.stderr.read()
        assert process.wait(timeout=30) == code
    assert "Traceback" not in errors
    assert not (tmp_path / "r.json").exists()


def test_a_defect_is_not_taken_for_a_failed_check(
    run: Runner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("flss_runtime.diagnosis.diagnose", broken)
    result = run("doctor")
    assert result.code == 70 and "Traceback" in result.err and "defect" in result.err


ROBOT = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None
from flss_edge.cli import main
bundle, pictures = sys.argv[1:]
calls = [
    ["inspect", bundle], ["verify", bundle, "--budget", "0.05"],
    ["calibrate", bundle, "--data", pictures, "--split", "test"],
    ["evaluate", bundle, "--data", pictures], ["predict", bundle, pictures], ["doctor"],
]
print([main(call) for call in calls], main(["export", "x.pt"]), file=sys.stderr)
"""


def test_the_robots_commands_need_no_torch(bundle: Path, labelled_pictures: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROBOT, str(bundle), str(labelled_pictures)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] 6", done.stderr
    assert "pip install 'flss-edge[train]'" in done.stderr


def test_main_leaves_the_hosts_signal_handler_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before

"""The scripts in benchmarks/, imported and started."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"


def load(name: str) -> ModuleType:
    """Import a script as it imports its neighbours: by its bare name."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


def start(name: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[Any]:
    """Start a script as a user starts it."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=folder)

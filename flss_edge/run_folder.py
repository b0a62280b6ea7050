"""The folder of a training run after a kill: brought back to the moment of its saved state."""

from __future__ import annotations

import json
from pathlib import Path

from flss_edge.checkpoint import load_checkpoint
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import CheckpointError

RUN_FILES = ("state.pt", "log.jsonl", "best.pt", "last.pt")


def abandoned_files(folder: Path) -> list[Path]:
    """Return the half-written files that a kill left in a run's folder."""
    return [path for name in RUN_FILES for path in folder.glob(f".tmp-*-{name}")]


def tidy(folder: Path, step: int) -> None:
    """Drop half-written files, and log records later than mini-batch `step`: the resumed run writes them again."""
    for abandoned in abandoned_files(folder):
        abandoned.unlink(missing_ok=True)
    path = folder / "log.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the line that a kill cut short
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def restore_best(folder: Path, epoch: int) -> None:
    """Make best.pt from last.pt where a kill came between the state that selected `epoch` and best.pt.

    Raises:
        CheckpointError: neither file is of that epoch.
    """
    best, last = folder / "best.pt", folder / "last.pt"
    if _epoch_of(best) == epoch:
        return
    if _epoch_of(last) != epoch:
        raise CheckpointError(
            f"{best} is not the checkpoint of epoch {epoch}, which this run selected",
            "Put it back, or start anew with --overwrite.",
        )
    with atomic_write(best) as temporary:
        temporary.write_bytes(last.read_bytes())


def _epoch_of(path: Path) -> int | None:
    return load_checkpoint(path).training.get("epoch") if path.exists() else None

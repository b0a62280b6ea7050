"""The folder of a training run: one run at a time, and after a kill back to the moment of its saved state."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flss_edge.checkpoint import load_checkpoint
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import CheckpointError, OutputError

RUN_FILES = ("state.pt", "log.jsonl", "best.pt", "last.pt", "curves.png")
TENSORBOARD = "tensorboard"  # folder of TensorBoard's event files


@contextmanager
def occupied(folder: Path, overwrite: bool = False) -> Iterator[None]:
    """Make the folder of a run and keep every other run out of it within the block; a kill lets go of it too.

    Args:
        folder: of the run; its parents are made as well.
        overwrite: delete what an earlier run left there. Other people's files are never touched.

    Raises:
        OutputError: another run is in the block, the folder belongs to something else, or it cannot be written.
    """
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "another run is training in"):
        with readable_errors(folder):
            _claim(folder, overwrite)
        yield


def _claim(folder: Path, overwrite: bool) -> None:
    files, events = [*(folder / name for name in RUN_FILES), *abandoned_files(folder)], _event_files(folder)
    ours = {*files, *(file.parent for file in events)}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry not in ours)
    if foreign and not (folder / "state.pt").exists():
        raise OutputError(f"{folder} holds other files ({', '.join(foreign[:3])})", "choose another folder with -o")
    for path in [*files, *events] if overwrite else ():
        path.unlink(missing_ok=True)
    if overwrite and events:
        with suppress(OSError):  # somebody's file is in it
            (folder / TENSORBOARD).rmdir()


@contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system raises within the block into an error with a remedy.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "choose another folder") from error


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold the folder's lock within the block; a kill lets go of it too.

    Args:
        folder: an existing one.
        busy: how the message begins where another process holds it.

    Raises:
        OutputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing releases it, and so does a kill
            except BlockingIOError:
                raise OutputError(f"{busy} {folder}", "wait for it to end, or choose another folder") from None
        yield
    finally:
        os.close(descriptor)


def _event_files(folder: Path) -> list[Path]:
    return [] if (folder / TENSORBOARD).is_symlink() else list((folder / TENSORBOARD).glob("events.out.tfevents.*"))


def abandoned_files(folder: Path) -> list[Path]:
    """Return the half-written files that a kill left in a run's folder."""
    return [path for name in RUN_FILES for path in folder.glob(f".tmp-*-{name}")]


def tidy(folder: Path, step: int, evaluated: int) -> None:
    """Drop half-written files, and log records later than mini-batch `step` or epoch `evaluated`.

    The resumed run writes them again.
    """
    for abandoned in abandoned_files(folder):
        abandoned.unlink(missing_ok=True)
    path = folder / "log.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= step and record.get("epoch", 0) <= evaluated:
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

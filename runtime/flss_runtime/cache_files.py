"""Where this machine's caches are, and how files get there: whole, private, and never worth more than time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flss_runtime.atomic import atomic_write
from flss_runtime.errors import OutputError

CACHE_VARIABLE = "FLSS_EDGE_CACHE"
_MAKE_ROOM = f"make it writable and free some space, or set {CACHE_VARIABLE} to another directory"
_CHUNK = 1 << 20

_log = logging.getLogger("flss_runtime")
_warned: set[Path] = set()


def cache_root() -> Path:
    """Return the directory of all caches: `FLSS_EDGE_CACHE`, or flss-edge in the user's cache directory.

    Raises:
        OutputError: Neither the environment nor the system names one.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(user):  # the specification: a relative one has to be ignored
        return Path(user) / "flss-edge"
    try:
        return Path.home() / ".cache" / "flss-edge"
    except RuntimeError as error:
        raise OutputError(f"there is no home directory for the cache ({error})", f"set {CACHE_VARIABLE}") from error


def read_blob(path: Path) -> bytes:
    """Return what a library cached for itself, b"" where there is nothing."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def write_blob(path: Path, content: bytes) -> None:
    """Keep what a library wants to find again; a place that cannot be written costs time at the next start only."""
    try:
        make_private(path.parent)
        with cache_write(path) as temporary:
            temporary.write_bytes(content)
    except OutputError as error:
        _log.debug("not kept: %s", error.problem)


def make_private(folder: Path) -> None:
    """Make a folder and what is missing above it, for their owner alone.

    Raises:
        OutputError: It cannot be made.
    """
    with as_output_error(folder):
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        for place in reversed(missing):  # mkdir(parents=True) would give the parents the usual mode
            place.mkdir(mode=0o700, exist_ok=True)


def check_private(*folders: Path) -> None:
    """Refuse folders that engines must not be loaded from, because anybody could have put code there.

    A folder that its group may write to is said once: whether that is somebody else, the mode does not tell.

    Args:
        folders: Those that do not exist are fine.

    Raises:
        OutputError: One belongs to another user, or everybody may write to it.
    """
    if os.name != "posix":
        return
    for folder in folders:
        try:
            found = folder.stat()
        except OSError:
            continue
        if found.st_uid not in (os.geteuid(), 0):
            raise OutputError(
                f"the cache {folder} belongs to another user, and an engine from it could run that user's code",
                f"sudo chown -R {os.geteuid()} {folder}, or set {CACHE_VARIABLE} to a directory of your own",
            )
        if found.st_mode & stat.S_IWOTH:
            raise OutputError(
                f"everybody may write to the cache {folder}, and an engine from it could run anybody's code",
                f"delete what you do not know there and chmod go-w {folder}",
            )
        if found.st_mode & stat.S_IWGRP and folder not in _warned:
            _warned.add(folder)
            _log.warning("its group may put code into the cache %s: chmod go-w %s", folder, folder)


@contextmanager
def as_output_error(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do about the cache."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write to the cache {folder}: {error.strerror or error}", _MAKE_ROOM) from error


@contextmanager
def cache_write(path: Path) -> Iterator[Path]:
    """Write a file as `atomic_write` does, in the place of whatever is there: a folder of its name is damage.

    Yields:
        An empty temporary file.

    Raises:
        OutputError: It cannot be written.
    """
    if not path.is_file():
        discard(path)
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OutputError as error:
        raise OutputError(error.problem, _MAKE_ROOM) from error


def discard(path: Path) -> None:
    """Remove what has a name in the cache, if there is anything, be it a folder.

    Raises:
        OutputError: It cannot be removed.
    """
    with as_output_error(path.parent):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def try_writing(folder: Path, size: int = _CHUNK) -> None:
    """Find out whether a folder takes a file of so many bytes; nothing of it stays, not even after a kill.

    Raises:
        OSError: It does not.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while size > 0:
            size -= file.write(bytes(min(size, _CHUNK)))
        os.fsync(file.fileno())  # some file systems say only here that there is no room


def read_object(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else None
    return None


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, for people to read too.

    Raises:
        OutputError: It cannot be written.
    """
    with cache_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

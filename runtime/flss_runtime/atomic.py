"""Outputs that are either complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flss_runtime.errors import OutputError

_FREE_SPACE_OR_PLACE = "check that the folder exists, can be written to and has free space, or choose another output"


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Stop before any work is done for an output that may not be written.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or there is no folder to put it in, or none that takes
            files.
    """
    _refuse_taken(path, overwrite)
    with _as_output_error(path, Path(path)):
        try:
            tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
        except OSError as error:  # names the file that was tried, which nobody asked for
            raise OSError(error.errno, error.strerror) from error


def _refuse_taken(path: str | Path, overwrite: bool) -> None:
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise OutputError(
            f"cannot write {path}: {parent} is not a folder", f"mkdir -p {parent}, or choose another output"
        )
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists already", "pass --overwrite to replace it, or choose another output")


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """Write a file so that nobody ever sees half of it.

    The body writes to the path it is given, which keeps the suffix of the target. When the body ends, the content is
    flushed to the disk and renamed over the target; when it fails, for whatever reason, the target stays as it was and
    the temporary file goes. A symbolic link is followed, so that the link survives.

    Args:
        path: The target.
        overwrite: Whether an existing target may be replaced.
        mode: Permissions of the new file, less the process's umask.

    Yields:
        An empty temporary file in the folder of the target.

    Raises:
        OutputError: The target exists and may not be replaced, is no regular file, or cannot be written.
    """
    _refuse_taken(path, overwrite)
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):
        # Renaming over /dev/null would replace the device.
        raise OutputError(f"{path} exists and is not a regular file", "choose another output")
    temporary = _beside(target)
    try:
        with _as_output_error(path, temporary):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            yield temporary
            _sync(temporary)
            if overwrite:
                os.replace(temporary, target)
            else:
                _move_without_replacing(temporary, target, path)
            with suppress(OSError):  # not every file system can flush a directory
                _sync(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a whole directory so that it appears complete or not at all.

    An existing directory is renamed away, the new one renamed into its place, and only then is the old one deleted. A
    kill between the two renames leaves the old one beside its place under a name that begins with ".old-".

    Args:
        path: The target directory. An empty one is filled even without `overwrite`.
        overwrite: Whether an existing bundle (a directory with a manifest.json) may be replaced. Nothing else ever is.

    Yields:
        An empty temporary directory beside the target.

    Raises:
        OutputError: The target exists and may not be replaced, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(path, target, overwrite)
    temporary = _beside(target)
    try:
        with _as_output_error(path, temporary):
            temporary.mkdir()
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                _sync(entry)
            _sync(temporary)
            _check_replaceable(path, target, overwrite)  # once more: the body may have taken minutes
            _swap_in(temporary, target)
            with suppress(OSError):  # not every file system can flush a directory
                _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_writer(directory: str | Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process is in this block for the same directory.

    Where the system or the file system has no locks, it does not wait.

    Args:
        directory: It has to exist.
        on_wait: Called before a wait, for another process is in the block.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing releases it, and so does a kill
            except BlockingIOError:
                on_wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _beside(target: Path) -> Path:
    # The suffix stays at the end (np.savez appends one otherwise); the length stays below the usual limit of 255.
    return target.with_name(f".tmp-{secrets.token_hex(6)}-{target.name[-200:]}")


def _check_replaceable(path: str | Path, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise OutputError(f"{path} exists and is not a directory", "choose another output")
    with _as_output_error(path, target):
        names = os.listdir(target)
    if names and "manifest.json" not in names:
        raise OutputError(
            f"{path} exists and is not a bundle (it holds no manifest.json), so it is never replaced",
            "choose another output, or remove that directory yourself",
        )
    if names:
        _refuse_taken(target, overwrite)


def _swap_in(temporary: Path, target: Path) -> None:
    if not target.is_dir() or not os.listdir(target):
        os.replace(temporary, target)  # POSIX replaces an empty directory
        return
    old = target.with_name(f".old-{secrets.token_hex(6)}-{target.name[-200:]}")
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except BaseException:
        if not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move_without_replacing(temporary: Path, target: Path, path: str | Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename, fails where somebody was faster
    except FileExistsError:
        _refuse_taken(path, overwrite=False)
    except OSError:  # a file system without hard links
        _refuse_taken(path, overwrite=False)
        os.replace(temporary, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_output_error(path: str | Path, temporary: Path) -> Iterator[None]:
    """Name the output in an error of the file system, unless the error is about some other file the body reads."""
    try:
        yield
    except OSError as error:
        about = error.filename  # None: a write or a flush, as on a full disk
        if isinstance(about, (str, bytes)) and not Path(os.fsdecode(about)).is_relative_to(temporary):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}", _FREE_SPACE_OR_PLACE) from error

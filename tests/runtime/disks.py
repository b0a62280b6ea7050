"""Disks that are full, and folders that somebody without rights looks at."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file grow past `size` bytes: the write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody whom permissions bind, also where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def let_all_enter(folder: Path) -> None:
    """Open a test's folder and those above it to whoever `unprivileged` is."""
    for place in (folder, *folder.parents[:3]):
        if place.stat().st_uid == os.geteuid() and place != Path("/tmp"):
            place.chmod(0o755)

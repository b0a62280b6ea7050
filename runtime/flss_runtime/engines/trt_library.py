"""What `tensorrt` and `tensorrt_rtx` have in common: what they are called, where they log, how a build is stopped."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

_log = logging.getLogger("flss_runtime")


def is_rtx(library: ModuleType) -> bool:
    """Tell whether this is TensorRT-RTX, which builds for GPUs that are not there."""
    return hasattr(library, "ComputeCapability")


def label(library: ModuleType) -> str:
    """Return name and version, such as "tensorrt_rtx 1.7.1.116"."""
    return f"{library.__name__.removesuffix('_bindings')} {library.__version__}"


@lru_cache(maxsize=2)
def logger(library: ModuleType) -> Any:
    """Return the one logger of a library: it keeps the first that it is given for the life of the process.

    Its `errors` and `warnings` hold the last messages; both go to the logger `flss_runtime` too, as debug.
    """
    warning = int(library.ILogger.Severity.WARNING)

    class Messages(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)
            self.warnings: deque[str] = deque(maxlen=200)

        def forget(self) -> None:
            self.errors.clear()
            self.warnings.clear()

        def log(self, severity: Any, message: str) -> None:
            if int(severity) > warning:
                return
            _log.debug("%s: %s", library.__name__, message)
            (self.warnings if int(severity) == warning else self.errors).append(" ".join(message.split()))

    return Messages()


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect after the block: what they raise in the library's logger is swallowed."""
    came: list[int] = []
    numbers = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not None]
    if threading.current_thread() is not threading.main_thread():  # signals do not arrive here
        numbers = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in came[:1]:  # also when the block failed: whoever asked to stop is not asked again
            signal.raise_signal(arrived)

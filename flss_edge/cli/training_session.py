"""What can end a training early: a signal, too little memory, or a failure in another process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from flss_runtime.errors import EngineUnavailable, FLSSError

if TYPE_CHECKING:
    from flss_edge.parallel import Processes

_STDERR = 2
_STOPPING = b"\nstopping after this mini-batch; a second signal leaves at once, without saving\n"
_NO_MEMORY = ("defaultcpuallocator", "out of memory", "unable to allocate")


class StopSignal:
    """SIGTERM and Ctrl-C ask the training within the block to stop; a second one ends the command at once.

    Attributes:
        received: number of the signal that asked, None as long as none did.
    """

    def __init__(self, announce: bool = True) -> None:
        """Prepare; `announce` says on stderr that a signal was understood."""
        self.received: int | None = None
        self._announce = announce
        self._previous: dict[int, signal.Handlers | int | Callable[[int, FrameType | None], object] | None] = {}

    @property
    def exit_code(self) -> int:
        """Exit code of a run that was stopped; another process may have got the signal."""
        return 128 + (self.received or signal.SIGTERM)

    def __bool__(self) -> bool:
        """Return whether the training is to stop."""
        return self.received is not None

    def __enter__(self) -> StopSignal:
        """Take over the signals, unless the caller ignores them, as a shell does for jobs in the background."""
        with suppress(ValueError):  # not the main thread: a host application owns the signals
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number
        if self._announce:
            with suppress(OSError):
                os.write(_STDERR, _STOPPING)  # no print: the signal may have come in the middle of one


@contextmanager
def readable_torch_errors() -> Iterator[None]:
    """Turn what torch raises where a machine is too small, or cannot compile, into an error with a remedy.

    Raises:
        EngineUnavailable: the memory of the device, or of the computer, is too small, --compile does not work, or
            another process ended.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise EngineUnavailable(
                f"torch.compile does not work here ({reason})", "install a C++ compiler, or leave out --compile"
            ) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower():
            raise EngineUnavailable(
                f"another process of this training is gone ({reason})",
                "read what that one said; where it was no mistake, the same command continues the run",
            ) from error
        lacking = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not lacking and not any(words in str(error).lower() for words in _NO_MEMORY):
            raise
        raise EngineUnavailable(
            f"the memory is too small for this training ({reason})",
            "split each mini-batch with --accumulate 2, or take a smaller one (--set batch_size=64) or a smaller "
            "--width; none of these trains quite the same network",
        ) from error


@contextmanager
def entered_by_first(block: AbstractContextManager[None], processes: Processes) -> Iterator[None]:
    """Enter `block` in the first process, before any other goes on; where that fails, all of them end."""
    with ExitStack() as stack:
        failure: FLSSError | None = None
        if processes.first:
            try:
                stack.enter_context(block)
            except FLSSError as error:
                failure = error
        if processes.any(failure is not None):
            raise failure if failure is not None else SystemExit(1)  # the first process says why
        yield

"""How every engine ends: closed by its `with` block or by hand, once or twice, and of no use afterwards."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

from flss_runtime.errors import InferenceError

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """Closes at the end of its `with` block."""

    def close(self) -> None:
        """Free what is held; twice is fine."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_closed(closed: bool) -> None:
    """Refuse to use an engine that is closed.

    Raises:
        InferenceError: It is.
    """
    if closed:
        raise InferenceError("the engine is closed", "open a new one with open_engine()")

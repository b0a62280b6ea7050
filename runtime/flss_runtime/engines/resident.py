"""Runs whose tensors stay where they are: for the one size of frame that a robot sees again and again."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from flss_runtime.engines import Engine, Tensors, one_line
from flss_runtime.errors import InferenceError

FloatArray = npt.NDArray[np.float32]

_LARGE = 2**20  # bytes; naming another address to ONNX Runtime takes as long as copying some 200 KB
_MOST_KEPT = 4  # numbers of samples: a robot has one, or two where it runs out of time
_Kept = TypeVar("_Kept")


class Resident(Protocol):
    """A graph bound to arrays on the host, which it reads and writes in place; nothing is allocated a run.

    Attributes:
        inputs: One array an input, C-contiguous; write to them before `run`.
        outputs: One array an output, valid until the next `run`.
    """

    inputs: Tensors
    outputs: Tensors

    def run(self) -> None:
        """Run the graph once.

        Raises:
            InferenceError: The engine failed.
        """
        ...


def bind(engine: Engine, inputs: Tensors) -> Resident:
    """Bind an engine to arrays.

    Args:
        engine: On a device that is not the host it has buffers of its own: then the arrays are copied at each run.
        inputs: One array an input, C-contiguous, of the dtype and shape that the engine takes; they are kept.

    Raises:
        InferenceError: The engine refused the arrays, or failed in a first run on them.
    """
    make = getattr(engine, "resident", None)
    resident: Resident | None = None if make is None else make(inputs)
    return _Copied(engine, inputs) if resident is None else resident


def keep(kept: dict[int, _Kept], num_samples: int, made: _Kept) -> _Kept:
    """Keep what was made for a number of samples, so that changing to it again costs nothing; forget the oldest one."""
    if len(kept) >= _MOST_KEPT:
        del kept[next(iter(kept))]
    kept[num_samples] = made
    return made


def own(array: FloatArray, lent: FloatArray | None) -> FloatArray:
    """Return an array that a graph may be bound to and that may be written to: the one that was lent, else a copy."""
    return array if array is lent else array.copy()


def place(array: FloatArray, bound: FloatArray) -> None:
    """Put an array where a bound graph reads it, unless it is that array: then there is nothing to copy."""
    if bound is not array:
        np.copyto(bound, array)


def feed(resident: Resident, name: str, array: FloatArray) -> None:
    """Let a bound graph read an array in its next run: a large one where it lies, where the engine can do that.

    Args:
        resident: The bound graph.
        name: Of its input.
        array: C-contiguous, of the dtype and shape that were bound; unchanged until after the run. May be read-only.
    """
    point = getattr(resident, "point", None) if array.nbytes >= _LARGE else None
    if point is None:
        np.copyto(resident.inputs[name], array)
    else:
        point(name, array)


class _Copied:
    """The same through `Engine.run`, for engines that cannot be bound."""

    def __init__(self, engine: Engine, inputs: Tensors) -> None:
        self._engine = engine
        self.inputs = inputs
        self.outputs = dict(engine.run(inputs))

    def run(self) -> None:
        for name, array in self._engine.run(self.inputs).items():
            self.outputs[name][...] = array


def check_contiguous(inputs: Tensors, library: str) -> None:
    """Refuse arrays whose memory cannot be bound.

    Raises:
        InferenceError: An array is not C-contiguous, or read-only.
    """
    for name, array in inputs.items():
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise InferenceError(
                f"{library} cannot be bound to {name}: it is read-only or not contiguous", "pass an array of your own"
            )


def run_failed(library: str, error: Exception) -> InferenceError:
    """Make the error of a run that failed on arrays which had been accepted."""
    return InferenceError(
        f"{library} failed: {one_line(error)}", "see the message; `flss-edge verify` tries the graphs"
    )

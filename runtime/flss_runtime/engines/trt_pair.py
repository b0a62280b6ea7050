"""Encoder and head in one CUDA graph: one copy in, one launch, one copy out.

mean and std never leave the GPU. The noise bank has a copy there, of which an image's window is copied into the place
that the graph reads: a captured graph knows fixed addresses only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np
import numpy.typing as npt

from flss_runtime.engines.cuda import DeviceBuffer, Graph, PinnedBuffer, Stream
from flss_runtime.engines.trt_plan import Context, Plan
from flss_runtime.errors import InferenceError
from flss_runtime.noise import KeyedNoise, NoiseSource
from flss_runtime.noise_place import BankPlace

_ALIGNMENT = 256  # bytes, what TensorRT asks of every address
_SHAPES_KEPT = 4  # single images, a data set's batches and its last, smaller one; and one to spare
_FLOAT = np.dtype(np.float32).itemsize
# Larger copies of pageable memory may still be reading it when the call returns, and a batch's next image rewrites it.
_STAGED = 64 * 1024

_log = logging.getLogger("flss_runtime")

FloatArray = npt.NDArray[np.float32]


class TrtPair:
    """An encoder and its head; see `pair.Pair`.

    Args:
        encoder: images -> mean, std.
        head: mean, std, noise, noise_scale -> logits, choices.
    """

    def __init__(self, encoder: Plan, head: Plan) -> None:
        self._encoder, self._head = encoder, head
        self._stream = Stream()
        self._bank = _DeviceBank(self._stream)
        self._runs: dict[tuple[int, int], _Run] = {}

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Run both graphs; see `pair.Pair.sample`."""
        size = (len(images), num_samples)
        run = self._runs.get(size)
        if run is None:
            run = self._prepare(size, images.shape)
        run.images[:] = images
        run.scale[0] = noise_scale
        self._bank.copy_windows(run.noise, noise, run.noise_shape)
        if run.graph is not None:
            run.graph.launch()
        else:
            run.enqueue()
        self._stream.wait()
        return run.logits.copy(), run.choices.copy()

    def is_captured(self, batch: int, num_samples: int) -> bool:
        """Tell whether runs of this size, after the first, are one launch of a CUDA graph."""
        run = self._runs.get((batch, num_samples))
        return run is not None and run.graph is not None

    def close(self) -> None:
        """Free the graphs and their memory; closing twice is fine."""
        while self._runs:
            self._runs.popitem()[1].close()
        self._bank.close()
        self._stream.close()

    def _prepare(self, size: tuple[int, int], images: tuple[int, ...]) -> _Run:
        if len(self._runs) >= _SHAPES_KEPT:
            self._runs.pop(next(iter(self._runs))).close()  # the one that came first
        run = _Run(self._encoder, self._head, self._stream, images, size[1])
        with ExitStack() as undo:
            undo.callback(run.close)
            run.capture()
            undo.pop_all()
        self._runs[size] = run
        for plan in (self._encoder, self._head):
            plan.keep_compiled()
        return run


class _Run:
    """Both contexts for one batch size and one number of samples, with the memory between host and GPU."""

    def __init__(self, encoder: Plan, head: Plan, stream: Stream, images: tuple[int, ...], num_samples: int) -> None:
        self._stream = stream
        self.graph: Graph | None = None
        self._encoder = Context(encoder, encoder.profile_for({"images": images}), stream)
        latent = self._encoder.set_shapes({"images": images})
        self.noise_shape = (images[0], num_samples, latent["mean"][1])
        shapes = {**latent, "noise": self.noise_shape, "noise_scale": (1,)}
        self._head = Context(head, head.profile_for(shapes), stream)
        votes = self._head.set_shapes(shapes)
        given, self._in = _layout([_bytes(images, _FLOAT), _FLOAT])
        between, middle = _layout([_bytes(latent["mean"], _FLOAT)] * 2 + [_bytes(self.noise_shape, _FLOAT)])
        taken, self._out = _layout([_bytes(votes["logits"], _FLOAT), _bytes(votes["choices"], 8)])
        with ExitStack() as memory:
            self._host_in = memory.enter_context(closing(PinnedBuffer(self._in)))
            self._host_out = memory.enter_context(closing(PinnedBuffer(self._out)))
            self._device_in = memory.enter_context(closing(DeviceBuffer(self._in)))
            self._device_out = memory.enter_context(closing(DeviceBuffer(self._out)))
            self._device_middle = memory.enter_context(closing(DeviceBuffer(middle)))
            self._place(given, between, taken)
            self._memory = memory.pop_all()
        self.images = self._host_in.view(given[0], images, "float32")
        self.scale = self._host_in.view(given[1], (1,), "float32")
        self.logits = self._host_out.view(taken[0], votes["logits"], "float32")
        self.choices = self._host_out.view(taken[1], votes["choices"], "int64")

    def _place(self, given: list[int], between: list[int], taken: list[int]) -> None:
        """Tell both contexts where their tensors are."""
        self.noise = self._device_middle.address + between[2]
        self._encoder.set_address("images", self._device_in.address + given[0])
        for context in (self._encoder, self._head):
            context.set_address("mean", self._device_middle.address + between[0])
            context.set_address("std", self._device_middle.address + between[1])
        self._head.set_address("noise", self.noise)
        self._head.set_address("noise_scale", self._device_in.address + given[1])
        self._head.set_address("logits", self._device_out.address + taken[0])
        self._head.set_address("choices", self._device_out.address + taken[1])

    def enqueue(self) -> None:
        """Put one run on the stream: copy in, encoder, head, copy out."""
        self._stream.copy_in(self._device_in.address, self._host_in.address, self._in)
        self._encoder.enqueue()
        self._head.enqueue()
        self._stream.copy_out(self._host_out.address, self._device_out.address, self._out)

    def capture(self) -> None:
        """Run once, because the first run after a change of shapes prepares what cannot be recorded; then record."""
        self._host_in.bytes[:] = 0
        self.enqueue()
        self._stream.wait()
        if not (self._encoder.capturable() and self._head.capturable()):
            _log.warning("the library cannot record this network into a CUDA graph: every frame is enqueued instead")
            return
        try:
            with self._stream.capture() as graph:
                self.enqueue()
        except InferenceError as error:
            _log.warning("no CUDA graph, so every frame is enqueued instead: %s", error.problem)
            return
        self.graph = graph

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        del self._encoder, self._head
        del self.images, self.scale, self.logits, self.choices  # views of what is freed now
        self._memory.close()


class _DeviceBank:
    """The GPU's copy of a noise bank; only what was rewritten since the last image is copied to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._memory: DeviceBuffer | None = None
        self._seen: BankPlace | None = None

    def copy_windows(self, target: int, noise: NoiseSource, shape: tuple[int, int, int]) -> None:
        """Put the next images' noise, (B, N, D), at an address of the GPU's memory."""
        batch, num_samples, latent_dim = shape
        if not isinstance(noise, KeyedNoise):  # no bank that is known
            taken = np.ascontiguousarray(noise.take(*shape), np.float32)
            self._stream.copy_in(target, taken.ctypes.data, taken.nbytes)
            self._stream.wait()  # the array is valid until the source's next call, or ours alone
            return
        size = num_samples * latent_dim * _FLOAT
        for image in range(batch):
            place = noise.take_place(num_samples, latent_dim)
            bank = self._follow(place)
            self._stream.copy_on_device(target + image * size, bank + place.start * _FLOAT, size)

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()

    def _follow(self, place: BankPlace) -> int:
        if self._memory is None or self._memory.size != place.bank.nbytes:
            if self._memory is not None:
                self._stream.wait()
                self._memory.close()
            self._memory, self._seen = DeviceBuffer(place.bank.nbytes), None
        source = place.bank.ctypes.data
        for part in place.changes_since(self._seen):
            start, size = part.start * _FLOAT, (part.stop - part.start) * _FLOAT
            self._stream.copy_in(self._memory.address + start, source + start, size)
            if size > _STAGED:
                self._stream.wait()
        self._seen = place
        return self._memory.address


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where parts of these sizes begin in one block of memory, aligned, and the size of the block."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return starts, end


def _bytes(shape: tuple[int, ...], item: int) -> int:
    return int(np.prod(shape)) * item

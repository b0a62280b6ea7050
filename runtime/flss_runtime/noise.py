"""Standard normals for the latent samples: unpredictable in the field, exactly repeatable for whoever holds the key.

How the numbers arise (the format of the stream; a change of any of it is a change of every recorded run):

1. Raw integers are Philox-4x64-10 under a 128-bit key (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
   SC 2011), read through `numpy.random.Philox(key, counter).random_raw`, whose stream NumPy keeps stable: four
   integers a block, and the 256-bit counter goes up by one before each block.
2. Two integers a, b become two normals by Box and Muller's transform in float64, rounded to float32:
   r cos t and r sin t with r = sqrt(-2 ln u), u = (a // 2**11 + 1) / 2**53, t = 2 pi (b // 2**11) / 2**53.
3. The bank is a flat array of 2**20 normals (or four windows, if that is more). Normal number p of generation g comes
   from the Philox counter words [p // 4, g, 0, 0].
4. Before the images 8, 16, 24, … one chunk of 1024 normals goes to its next generation, one chunk after the other, so
   the state of the bank follows from the counter alone.
5. Image c reads the N * D normals from offset 16 * (r mod slots), where r is number c mod 256 of the raw stream that
   begins at [64 * (c // 256), 0, 1, 0], and slots is the number of offsets at which a whole window fits.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

import numpy as np

from flss_runtime.atomic import atomic_write
from flss_runtime.errors import DataError, UsageError
from flss_runtime.noise_place import CHUNK, BankPlace
from flss_runtime.normal_stream import OFFSET_STREAM, FloatArray, NormalStream

_BANK = 2**20  # 4 MiB: window offsets enough, and it stays near the last-level cache
_FRAMES_PER_CHUNK = 8  # 128 fresh normals an image; a chunk lives 8192 images in the smallest bank
_ALIGNMENT = 16  # floats: one cache line
_OFFSETS = 256
_COUNTER_LIMIT = 2**63


class NoiseSource(Protocol):
    """Where a classifier takes its standard normals from."""

    @property
    def counter(self) -> int:
        """Number of the image that is served next."""
        ...

    def take(self, batch: int, num_samples: int, latent_dim: int) -> FloatArray:
        """Give each of the next `batch` images its noise and advance the counter by `batch`.

        Args:
            batch: Images, B >= 1.
            num_samples: Latent samples an image, N >= 1.
            latent_dim: Size of a latent, D >= 1.

        Returns:
            (B, N, D) standard normals, C-contiguous and read-only; valid until the next call.
        """
        ...


class KeyedNoise:
    """Noise that follows from a 128-bit key and a frame counter.

    A window of N * D normals an image is read from a resident bank, so that an image costs a few microseconds instead
    of N * D fresh normals (0.5 ms and more for 100 x 512). `take` serves images in order, `at` any one of them; both
    give the same bits, whatever the sizes of the calls before.

    What this is not: fresh noise for every image. Within one image all N * D normals are distinct positions of the
    bank. Between images the same normals recur: two images' windows overlap with a chance of about
    2 N D / bank size (10 % for 100 x 512), and a bank position is replaced only after 8192 images. Where windows
    overlap, a normal mostly meets another latent dimension, which leaves the two vote counts nearly uncorrelated (by
    the order of 1 / sqrt(D)). When the offsets differ by a multiple of D (one overlap in D / 16, so 0.3 % of all
    pairs for 100 x 512), the two images share whole latent samples, and their vote counts are as dependent as with the
    one fixed matrix of the reference implementation, in proportion to the overlap. The distribution of each single
    image's noise is not affected; only an average over repeated queries of one image converges a little more slowly.

    Philox is a statistical generator with a long record, not a cipher with a security proof. It keeps whoever lacks the
    key from predicting the noise; no noise ever leaves the classifier, only votes do.

    One source serves one classifier and one thread. A forked process would repeat its parent's noise: make a source
    after the fork. The key appears in no message and no `repr`.

    Args:
        key: 128 bits, 0 <= key < 2**128.
        counter: Number of the first image, 0 <= counter < 2**63.

    Raises:
        UsageError: Key or counter out of range.
    """

    def __init__(self, key: int, counter: int = 0) -> None:
        if not 0 <= key < 2**128:
            raise UsageError("the noise key does not fit 128 bits", "pass an integer from 0 to 2**128 - 1")
        _check_counter(counter)
        self._stream = NormalStream(key)
        self._counter = counter
        self._bank = np.empty(0, np.float32)
        self._window = self._bank  # read-only view of the bank
        self._epoch = -1  # chunk refreshes the bank has seen
        self._offsets: list[int] = []
        self._offsets_of = (-1, -1)  # block of counters and number of slots that `_offsets` belongs to

    def __repr__(self) -> str:
        return f"{type(self).__name__}(counter={self._counter})"

    @property
    def counter(self) -> int:
        """Number of the image that is served next; set it to go on elsewhere in the stream (costs a new bank)."""
        return self._counter

    @counter.setter
    def counter(self, counter: int) -> None:
        _check_counter(counter)
        self._counter = counter

    def take(self, batch: int, num_samples: int, latent_dim: int) -> FloatArray:
        """Give each of the next `batch` images its noise and advance the counter by `batch`.

        Args:
            batch: Images, B >= 1.
            num_samples: Latent samples an image, N >= 1.
            latent_dim: Size of a latent, D >= 1.

        Returns:
            (B, N, D) float32 standard normals, C-contiguous, read-only, valid until the next call: for one image a
            view of the bank, for several a copy, because each image sees the bank in its own state.

        Raises:
            UsageError: A size is below 1.
        """
        _check_sizes(batch, num_samples, latent_dim)
        size = num_samples * latent_dim
        if batch == 1:
            return self._next_window(size).reshape(1, num_samples, latent_dim)
        noise = np.empty((batch, size), np.float32)
        for row in noise:
            row[:] = self._next_window(size)
        noise.flags.writeable = False
        return noise.reshape(batch, num_samples, latent_dim)

    def at(self, counter: int, num_samples: int, latent_dim: int) -> FloatArray:
        """Compute the noise that `take` gives image `counter`, from the key alone.

        Args:
            counter: Number of the image, 0 <= counter < 2**63.
            num_samples: Latent samples, N >= 1.
            latent_dim: Size of a latent, D >= 1.

        Returns:
            (N, D) float32 standard normals, the caller's own. Costs N * D fresh normals and leaves the source as it is.

        Raises:
            UsageError: The counter is out of range or a size is below 1.
        """
        _check_counter(counter)
        _check_sizes(1, num_samples, latent_dim)
        size = num_samples * latent_dim
        bank_size = _bank_size(size)
        start = self._offset_block(counter // _OFFSETS, _slots(bank_size, size))[counter % _OFFSETS]
        noise = np.empty(size, np.float32)
        self._write_state(noise, start, counter // _FRAMES_PER_CHUNK, bank_size)
        return noise.reshape(num_samples, latent_dim)

    def take_place(self, num_samples: int, latent_dim: int) -> BankPlace:
        """Give the next image its noise as a place in the bank, for a device that keeps a copy of that.

        Args and errors are those of `take`.

        Returns:
            Where the N * D normals begin that `take` would give; the image is counted as there.
        """
        _check_sizes(1, num_samples, latent_dim)
        start = self._next_start(num_samples * latent_dim)  # first: it brings the bank up to date
        return BankPlace(self._bank, self._epoch, start)

    def _next_window(self, size: int) -> FloatArray:
        start = self._next_start(size)
        return self._window[start : start + size]

    def _next_start(self, size: int) -> int:
        """Bring the bank to the state of the next image, return where its window begins and count the image."""
        counter = self._counter
        bank_size = _bank_size(size)
        epoch = counter // _FRAMES_PER_CHUNK
        if epoch != self._epoch or bank_size != self._bank.size:
            self._bring_bank_to(epoch, bank_size)
        block, place = divmod(counter, _OFFSETS)
        wanted = (block, _slots(bank_size, size))
        if wanted != self._offsets_of:
            self._offsets = self._offset_block(*wanted)
            self._offsets_of = wanted
        start = self._offsets[place]
        self._counter = counter + 1
        return start

    def _bring_bank_to(self, epoch: int, bank_size: int) -> None:
        chunks = bank_size // CHUNK
        if bank_size == self._bank.size and 0 < epoch - self._epoch <= chunks:
            for step in range(self._epoch + 1, epoch + 1):
                generation, chunk = divmod(step - 1, chunks)
                start = chunk * CHUNK
                self._stream.write_normals(self._bank[start : start + CHUNK], start, generation + 1)
        else:
            self._bank = np.empty(bank_size, np.float32)
            self._window = self._bank.view()
            self._window.flags.writeable = False
            self._write_state(self._bank, 0, epoch, bank_size)
        self._epoch = epoch

    def _write_state(self, out: FloatArray, start: int, epoch: int, bank_size: int) -> None:
        """Write the part of the bank that begins at `start`, as it is after `epoch` refreshes."""
        generation, refreshed = divmod(epoch, bank_size // CHUNK)
        border = min(max(refreshed * CHUNK - start, 0), out.size)  # chunks before it are one generation ahead
        self._stream.write_normals(out[:border], start, generation + 1)
        self._stream.write_normals(out[border:], start + border, generation)

    def _offset_block(self, block: int, slots: int) -> list[int]:
        """Give the window offsets of images `block` * 256 to `block` * 256 + 255."""
        raw = self._stream.raw(block * (_OFFSETS // 4), 0, OFFSET_STREAM, _OFFSETS)
        offsets: list[int] = (raw % np.uint64(slots) * np.uint64(_ALIGNMENT)).tolist()
        return offsets


class SystemNoise(KeyedNoise):
    """Noise nobody can predict: the key comes from the operating system and stays in this process's memory.

    Args:
        record_key: Where to write the key for a later replay, readable by this user only. Whoever reads this file can
            predict every sample of the run.

    Raises:
        OutputError: `record_key` exists already or cannot be written.
    """

    def __init__(self, record_key: Path | None = None) -> None:
        key = secrets.randbits(128)
        if record_key is not None:
            with atomic_write(record_key, overwrite=False, mode=0o600) as temporary:
                temporary.write_text(f"{key:032x}\n", encoding="ascii")
        super().__init__(key)


class SeededNoise(KeyedNoise):
    """Noise for tests, replays and benchmarks: the seed is the key, so anybody can predict it.

    Args:
        seed: 0 <= seed < 2**128.

    Raises:
        UsageError: The seed is out of range.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**128:
            raise UsageError(f"seed {seed} is out of range", "pass an integer from 0 to 2**128 - 1")
        super().__init__(seed)


def read_key(path: Path) -> int:
    """Read a key that `SystemNoise` recorded.

    Returns:
        The key for `KeyedNoise`.

    Raises:
        DataError: The file cannot be read or holds no key. The message does not quote its content.
    """
    fix = "pass the file that --record-key wrote"
    try:
        with path.open("rb") as file:
            text = file.read(64)
    except OSError as error:
        raise DataError(f"cannot read the noise key {path}: {error.strerror or error}", fix) from error
    digits = text.strip()
    if len(digits) != 32 or digits.strip(b"0123456789abcdef"):
        raise DataError(f"{path} holds no noise key (32 hexadecimal digits)", fix)
    return int(digits, 16)


def _bank_size(window: int) -> int:
    return max(_BANK, -(-4 * window // CHUNK) * CHUNK)


def _slots(bank_size: int, window: int) -> int:
    return (bank_size - window) // _ALIGNMENT + 1


def _check_counter(counter: int) -> None:
    if not 0 <= counter < _COUNTER_LIMIT:
        raise UsageError(f"noise counter {counter} is out of range", "pass a counter from 0 to 2**63 - 1")


def _check_sizes(batch: int, num_samples: int, latent_dim: int) -> None:
    if batch < 1 or num_samples < 1 or latent_dim < 1:
        raise UsageError(
            f"noise of shape ({batch}, {num_samples}, {latent_dim}) was asked for", "pass three sizes of at least 1"
        )

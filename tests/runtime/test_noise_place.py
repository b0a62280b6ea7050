from __future__ import annotations

import numpy as np
import pytest

from flss_runtime.errors import UsageError
from flss_runtime.noise import SeededNoise
from flss_runtime.noise_place import CHUNK, BankPlace


class Copy:
    """A device's copy of the bank, kept the way a device does: only what changed is written."""

    def __init__(self) -> None:
        self.seen: BankPlace | None = None
        self.bank = np.empty(0, np.float32)
        self.written = 0

    def window(self, place: BankPlace, size: int) -> np.ndarray:
        if self.bank.size != place.bank.size:
            self.bank, self.seen = np.full(place.bank.size, np.nan, np.float32), None
        self.written = 0
        for part in place.changes_since(self.seen):
            self.bank[part] = place.bank[part]
            self.written += part.stop - part.start
        self.seen = place
        return self.bank[place.start : place.start + size].copy()


@pytest.mark.parametrize("start", [0, 8 * 1024 - 20, 2**40])
def test_a_copy_that_follows_gives_the_noise_that_take_gives(start: int) -> None:
    source, other, copy = SeededNoise(5), SeededNoise(5), Copy()
    source.counter = other.counter = start
    for image in range(60):
        place = source.take_place(10, 64)
        window = copy.window(place, 640)
        np.testing.assert_array_equal(window, other.take(1, 10, 64).ravel())
        assert source.counter == other.counter
        if image:
            assert copy.written == (CHUNK if (start + image) % 8 == 0 else 0)
    np.testing.assert_array_equal(copy.bank, place.bank)


def test_jumps_and_other_sizes_are_followed() -> None:
    source, other, copy = SeededNoise(5), SeededNoise(5), Copy()
    sizes = [(10, 64), (10, 64), (600, 512), (10, 64), (10, 64)]
    for counter, (num_samples, latent_dim) in zip([0, 100_000, 100_001, 3, 5], sizes, strict=True):
        source.counter = other.counter = counter
        window = copy.window(source.take_place(num_samples, latent_dim), num_samples * latent_dim)
        np.testing.assert_array_equal(window, other.take(1, num_samples, latent_dim).ravel())


def test_several_refreshes_between_two_looks_are_all_seen() -> None:
    source, copy = SeededNoise(5), Copy()
    copy.window(source.take_place(10, 64), 640)
    for _ in range(5):
        source.take(40, 10, 64)  # somebody else's images
        place = source.take_place(10, 64)
        copy.window(place, 640)
        np.testing.assert_array_equal(copy.bank, place.bank)


def test_a_place_counts_an_image_and_needs_sizes() -> None:
    source = SeededNoise(5)
    source.take_place(10, 64)
    assert source.counter == 1
    with pytest.raises(UsageError):
        source.take_place(0, 64)

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_runtime.errors import DataError, OutputError, UsageError
from flss_runtime.noise import KeyedNoise, NoiseSource, SeededNoise, SystemNoise, read_key

SAMPLES, LATENT = 100, 512
KEY = 0x0123456789ABCDEF_FEDCBA9876543210
BANK, CHUNK, FRAMES_PER_CHUNK = 2**20, 1024, 8
FULL_TURN = BANK // CHUNK * FRAMES_PER_CHUNK  # images until the whole bank has been renewed once

# (key, counter) -> first normals of that image's window, exact float32 values. A change here breaks every recorded run.
# The window is the one of N = 1, D = 8.
GOLDEN = {
    (0, 0): "-0x1.5030a0p0 -0x1.5a583ep1 0x1.baa444p-1 0x1.effbcap0 "
    "0x1.d4bc38p-4 -0x1.c50686p-4 -0x1.df6808p-2 0x1.7985f8p-2",
    (KEY, 123456789): "0x1.28df74p0 -0x1.c9cd34p0 0x1.a37202p-2 -0x1.3413e6p-4 "
    "-0x1.357728p-2 -0x1.0c2ae4p-2 -0x1.0570e6p-1 0x1.c1c5d4p-1",
}


def from_hex(text: str) -> npt.NDArray[np.float32]:
    return np.array([float.fromhex(word) for word in text.split()], np.float32)


def philox_block(key: int, counter: int) -> list[int]:
    """Philox-4x64-10 as its authors print it, in plain integers."""
    mask = 2**64 - 1
    words = [counter >> (64 * place) & mask for place in range(4)]
    low, high = key & mask, key >> 64
    for _ in range(10):
        first, second = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [
            (second >> 64) ^ words[1] ^ low,
            second & mask,
            (first >> 64) ^ words[3] ^ high,
            first & mask,
        ]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return words


def restated(key: int, counter: int, size: int) -> list[float]:
    """The stream format of noise.py's docstring once more, with nothing but integers and math."""
    slots = (BANK - size) // 16 + 1
    block, place = divmod(counter, 256)
    raw = philox_block(key, (1 << 128) + block * 64 + place // 4 + 1)[place % 4]
    start = 16 * (raw % slots)
    refreshes = counter // FRAMES_PER_CHUNK
    normals = []
    for position in range(start, start + size):
        chunk = position // CHUNK
        generation = len(range(chunk, refreshes, BANK // CHUNK))  # how many refreshes hit this chunk
        a, b = philox_block(key, (generation << 64) + position // 4 + 1)[position % 4 // 2 * 2 :][:2]
        radius = math.sqrt(-2 * math.log((a // 2**11 + 1) / 2**53))
        angle = 2 * math.pi * (b // 2**11) / 2**53
        normals.append(radius * (math.sin(angle) if position % 2 else math.cos(angle)))
    return normals


def test_philox_restatement_gives_the_authors_known_answer() -> None:
    # Random123's kat_vectors: "philox4x64 10" with counter and key all zero.
    assert philox_block(0, 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@pytest.mark.parametrize(("key", "counter"), GOLDEN)
def test_golden_vector(key: int, counter: int) -> None:
    expected = from_hex(GOLDEN[key, counter])
    np.testing.assert_array_equal(KeyedNoise(key, counter).take(1, 1, 8).ravel(), expected)
    np.testing.assert_allclose(restated(key, counter, 8), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("counter", [0, 7, 8, 255, 256, 8191, 8192, 1_000_003])
def test_stream_is_what_the_docstring_says(counter: int) -> None:
    noise = KeyedNoise(KEY).at(counter, 3, 700)  # long enough to cross a chunk
    np.testing.assert_allclose(noise.ravel(), restated(KEY, counter, 2100), rtol=0, atol=1e-6)


def test_take_gives_what_at_gives_before_and_after_refreshes() -> None:
    source, reference = SeededNoise(3), SeededNoise(3)
    for counter in range(600):
        taken = source.take(1, SAMPLES, LATENT)
        if counter % 37 < 2 or counter in (7, 8, 9, 255, 256):
            np.testing.assert_array_equal(taken[0], reference.at(counter, SAMPLES, LATENT))


@pytest.mark.parametrize("counter", [FULL_TURN - 3, FULL_TURN * 5 + 17, 2**40, 2**63 - 10])
def test_take_gives_what_at_gives_far_along(counter: int) -> None:
    source = KeyedNoise(KEY, counter)
    for image in range(counter, counter + 9):
        np.testing.assert_array_equal(source.take(1, SAMPLES, LATENT)[0], KeyedNoise(KEY).at(image, SAMPLES, LATENT))


def test_a_whole_turn_of_refreshes_equals_a_rebuilt_bank() -> None:
    walked = SeededNoise(9)
    for _ in range(FULL_TURN + 40):
        walked.take(1, 2, 8)
    jumped = KeyedNoise(9, FULL_TURN + 40)
    np.testing.assert_array_equal(walked.take(20, SAMPLES, LATENT), jumped.take(20, SAMPLES, LATENT))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 5000))
def test_chunking_changes_nothing(batches: list[int], counter: int) -> None:
    chunked, single = KeyedNoise(1, counter), KeyedNoise(1, counter)
    for batch in batches:
        together = chunked.take(batch, 10, 32)
        for row in together:
            np.testing.assert_array_equal(row, single.take(1, 10, 32)[0])
    assert chunked.counter == single.counter == counter + sum(batches)


def test_changing_sizes_changes_nothing() -> None:
    # 2000 x 512 needs a larger bank than 100 x 512, which then comes back.
    mixed, reference = SeededNoise(5), SeededNoise(5)
    for counter, samples in enumerate([100, 1, 2000, 100, 1, 2000]):
        np.testing.assert_array_equal(mixed.take(1, samples, LATENT)[0], reference.at(counter, samples, LATENT))


def test_counter_can_be_set_back() -> None:
    source = SeededNoise(5)
    first = source.take(40, 4, 16).copy()
    source.counter = 0
    np.testing.assert_array_equal(source.take(40, 4, 16), first)


@pytest.mark.parametrize("batch", [1, 3])
def test_arrays_are_read_only_contiguous_float32(batch: int) -> None:
    noise = SeededNoise(0).take(batch, 5, 7)
    assert noise.shape == (batch, 5, 7)
    assert noise.dtype == np.float32
    assert noise.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        noise[0, 0, 0] = 0


def test_one_image_is_a_view_of_the_bank() -> None:
    source = SeededNoise(0)
    first, second = source.take(1, SAMPLES, LATENT), source.take(1, SAMPLES, LATENT)
    assert first.base is not None
    assert first.base is second.base
    assert (first.ctypes.data - second.ctypes.data) % 64 == 0  # whole cache lines apart


def test_whole_bank_is_standard_normal() -> None:
    bank = KeyedNoise(2024).at(0, 1, 2**20).ravel().astype(np.float64)
    n = bank.size
    # Five standard errors of each sample moment of a normal; the seed is fixed, so this never flickers.
    assert abs(bank.mean()) < 5 / math.sqrt(n)
    assert abs((bank**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((bank**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((bank**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert kolmogorov_distance(bank) < 1.63 / math.sqrt(n)  # the 1 % critical value
    assert 4.4 < np.abs(bank).max() < 6.5  # the extreme of 10**6 normals
    for lag in (1, 2, 3, 4, 16, 512, 1024):
        assert abs((bank[lag:] * bank[:-lag]).mean()) < 5 / math.sqrt(n)
        assert abs(((bank[lag:] ** 2 - 1) * (bank[:-lag] ** 2 - 1)).mean()) < 5 * 2 / math.sqrt(n)


def test_noise_of_each_latent_dimension_is_normal_over_images() -> None:
    source = SeededNoise(11)
    images = np.stack([source.take(1, 4, 16)[0].copy() for _ in range(20000)]).astype(np.float64)
    flat = images.reshape(len(images), -1)
    assert np.abs(flat.mean(axis=0)).max() < 5 / math.sqrt(len(flat))
    assert np.abs(flat.var(axis=0) - 1).max() < 5 * math.sqrt(2 / len(flat))
    covariance = np.cov(flat.T) - np.eye(flat.shape[1])
    assert np.abs(covariance).max() < 6 / math.sqrt(len(flat)) * math.sqrt(2)


def kolmogorov_distance(values: npt.NDArray[np.float64]) -> float:
    ordered = np.sort(values)
    exact = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in ordered.tolist()])
    steps = np.arange(1, ordered.size + 1) / ordered.size
    return float(max((steps - exact).max(), (exact - steps + 1 / ordered.size).max()))


def test_every_image_has_its_own_window() -> None:
    batch = SeededNoise(4).take(64, SAMPLES, LATENT)
    assert len({row.tobytes() for row in batch}) == 64
    first = SeededNoise(4).take(1, SAMPLES, LATENT)[0]
    assert not np.array_equal(first, SeededNoise(5).take(1, SAMPLES, LATENT)[0])


def test_window_overlap_is_as_rare_as_documented() -> None:
    source = SeededNoise(8)
    size = SAMPLES * LATENT
    starts = np.array([source.take(1, SAMPLES, LATENT).ctypes.data // 4 for _ in range(2000)])
    pairs = np.abs(starts[::2] - starts[1::2])
    assert 0.07 < (pairs < size).mean() < 0.13
    assert (pairs[pairs < size] % LATENT == 0).mean() < 0.12  # 1 in 32 of the overlaps


def test_sources_keep_the_protocol_and_hide_the_key(tmp_path: Path) -> None:
    sources: list[NoiseSource] = [KeyedNoise(KEY, 5), SeededNoise(987654321), SystemNoise()]
    for source, counter in zip(sources, (5, 0, 0), strict=True):
        assert source.counter == counter
        text = repr(source) + str(source)
        assert text == f"{type(source).__name__}(counter={counter})" * 2
    system = SystemNoise(tmp_path / "key")
    secret = (tmp_path / "key").read_text().strip()
    assert secret not in repr(system) and str(int(secret, 16)) not in repr(system)


def test_system_noise_differs_and_its_record_replays_it(tmp_path: Path) -> None:
    assert not np.array_equal(SystemNoise().take(1, 1, 8), SystemNoise().take(1, 1, 8))
    file = tmp_path / "run.key"
    source = SystemNoise(file)
    assert file.stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(source.take(3, 10, 16), KeyedNoise(read_key(file)).take(3, 10, 16))
    with pytest.raises(OutputError, match="exists already"):
        SystemNoise(file)
    with pytest.raises(OutputError, match="cannot write"):
        SystemNoise(tmp_path / "missing" / "run.key")


@pytest.mark.parametrize("content", [b"", b"secret", b"0" * 31, b"g" * 32, b"0" * 33, b"\xff" * 32])
def test_a_file_that_is_no_key_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(DataError, match="holds no noise key") as caught:
        read_key(file)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="cannot read"):
        read_key(tmp_path / "absent")


@pytest.mark.parametrize("key", [-1, 2**128])
def test_keys_out_of_range_are_refused(key: int) -> None:
    with pytest.raises(UsageError, match="128 bits") as caught:
        KeyedNoise(key)
    assert str(key) not in str(caught.value)
    with pytest.raises(UsageError, match="out of range"):
        SeededNoise(key)


@pytest.mark.parametrize("counter", [-1, 2**63])
def test_counters_out_of_range_are_refused(counter: int) -> None:
    source = SeededNoise(0)
    with pytest.raises(UsageError, match="counter"):
        KeyedNoise(0, counter)
    with pytest.raises(UsageError, match="counter"):
        source.at(counter, 1, 1)
    with pytest.raises(UsageError, match="counter"):
        source.counter = counter


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="noise of shape"):
        SeededNoise(0).take(*sizes)

"""Bags that rosbag2 compressed with zstd, file by file or message by message."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flss_runtime.errors import DataError, EngineUnavailable

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_MESSAGE = 2**30  # bytes; what is larger is a damaged header
_BLOCK = 2**20


def decompress(data: bytes) -> bytes:
    """Decompress one message.

    Raises:
        DataError: It is damaged or would be larger than a gibibyte.
        EngineUnavailable: The library is not installed.
    """
    zstandard = _library()
    try:
        size = zstandard.frame_content_size(data)
        if size > _MAX_MESSAGE:
            raise DataError(f"a compressed message announces {size:,} bytes", "record it again")
        return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_MESSAGE))
    except zstandard.ZstdError as error:
        raise DataError(f"a compressed message is damaged ({error})", "record it again") from error


@contextmanager
def decompressed_file(path: Path) -> Iterator[Path]:
    """Decompress a file into a temporary one, which goes when the block ends; of one that was cut off, what it has.

    Raises:
        DataError: Nothing of it can be decompressed.
        EngineUnavailable: The library is not installed.
    """
    zstandard = _library()
    with tempfile.TemporaryDirectory(prefix="flss-edge-") as folder:
        target = Path(folder) / path.stem
        with path.open("rb") as file, target.open("wb") as out:
            reader = zstandard.ZstdDecompressor().stream_reader(file)
            try:
                while block := reader.read(_BLOCK):
                    out.write(block)
            except zstandard.ZstdError as error:
                if not out.tell():
                    raise DataError(f"{path} is no zstd file, or damaged ({error})", "copy it again") from error
        yield target


def _library() -> Any:
    try:
        import zstandard
    except ImportError as error:
        fix = "pip install 'flss-edge[mcap]', or unpack the bag: zstd -d FILE"
        raise EngineUnavailable(f"this bag is compressed, and zstandard cannot be imported ({error})", fix) from error
    return zstandard

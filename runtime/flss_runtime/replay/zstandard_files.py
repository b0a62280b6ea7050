"""Bags that rosbag2 compressed with zstd, file by file or message by message."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flss_runtime.errors import DataError, EngineUnavailable

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_MESSAGE = 2**30  # bytes; what is larger is a damaged header
_BLOCK = 2**20
_LONGEST_HEADER = 18  # bytes of a frame's header at most


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
def decompressed_file(path: Path) -> Iterator[tuple[Path, str]]:
    """Decompress a file into a temporary one, which goes when the block ends.

    Yields:
        The temporary file, and what is known to be missing from it: of one that was cut off it has what can be read.

    Raises:
        DataError: Nothing of it can be decompressed, or the temporary folder has no room for it.
        EngineUnavailable: The library is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="flss-edge-") as folder:
        target = Path(folder) / path.stem
        try:
            missing = _decompress_file(path, target)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            problem = f"{path} does not fit into the temporary folder {tempfile.gettempdir()} when it is unpacked"
            raise DataError(
                problem, "set TMPDIR to a folder with more room, or unpack the bag: zstd -d FILE"
            ) from error
        yield target, missing


def _decompress_file(path: Path, target: Path) -> str:
    zstandard = _library()
    problem, announced = "", -1
    with path.open("rb") as file, target.open("wb") as out:
        try:
            announced = zstandard.frame_content_size(file.read(_LONGEST_HEADER))  # -1 where it does not say
            if announced > shutil.disk_usage(target.parent).free:
                raise OSError(errno.ENOSPC, f"{announced:,} bytes")
            file.seek(0)
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            while block := reader.read(_BLOCK):
                out.write(block)
        except zstandard.ZstdError as error:
            problem = f" ({error})"
        unpacked = out.tell()
    if not unpacked:
        raise DataError(f"{path} is no zstd file, or damaged{problem}", "copy it again")
    if problem or unpacked < announced:  # the reader of a file that was cut off just ends
        of = f" of {announced:,}" if announced > 0 else ""
        return f"{path} is cut off or damaged: {unpacked:,}{of} bytes of it can be unpacked{problem}"
    return ""


def _library() -> Any:
    try:
        import zstandard
    except ImportError as error:
        fix = "pip install 'flss-edge[mcap]', or unpack the bag: zstd -d FILE"
        raise EngineUnavailable(f"this bag is compressed, and zstandard cannot be imported ({error})", fix) from error
    return zstandard

"""A record of every frame, one line of JSON each, which with the key of the noise makes every decision repeatable."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from flss_runtime.bundle import utc_now
from flss_runtime.errors import DataError, OutputError, UsageError
from flss_runtime.stream.results import StreamResult
from flss_runtime.stream.waiting import wait_until

_log = logging.getLogger("flss_runtime")

SCHEMA_VERSION = 1
_EVERY_S = 1.0
_MOST_HELD = 20_000  # frames, some 25 MB: minutes of a disk that hangs
_CLOSE_S = 10.0

Json = dict[str, Any]


class FrameRecorder:
    """Appends a line for each result to a file, once a second and in a thread of its own: a slow disk delays no frame.

    A recorder is for one stream, which begins with a line `{"header": …}`. Nothing is replaced: a file that is there
    already is continued, after its last whole line. What a crash may cost is the last second and half a line; a power
    cut, what the system has not put on the disk yet.

    Args:
        path: The file.
        notes: JSON values for the headers, beside what the stream says of itself.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._claimed = False
        self._dropped = 0
        self._buffered = 0  # frames handed to the file since it was last flushed
        self._failing = False  # whether that went wrong
        self._notes = dict(notes or {})
        self._file = _open(self.path)
        self._class_names: tuple[str, ...] = ()
        self._lines: deque[Json | bytes] = deque()  # frames, and the line of the header
        self._ending = False
        self._end: SimpleQueue[None] = SimpleQueue()  # wakes the thread; an Event has a lock, which a handler may want
        self._thread: threading.Thread | None = None
        self._written = False  # the thread has nothing left to do
        self._reported: set[type[Exception]] = set()

    @property
    def lost(self) -> int:
        """Frames that could not be written; while the disk refuses, also the lines that wait for it."""
        waiting = self._buffered + len(self._lines) if self._failing or self._file.closed else 0
        return self._dropped + waiting

    def claim(self) -> None:
        """Take it for a stream, which closes it.

        Raises:
            UsageError: It has had its stream.
        """
        if self._claimed or self._ending:
            raise UsageError("this FrameRecorder has had its stream", "make a new one for each stream")
        self._claimed = True

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write the header of a stream; the stream does that when it is open.

        Args:
            facts: JSON values: what decides, the names of the classes, policies and versions.

        Raises:
            UsageError: Notes or facts are no JSON values.
        """
        header = {"schema_version": SCHEMA_VERSION, "created": utc_now(), **self._notes, **facts}
        try:
            self._lines.append(_line({"header": header}))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the header of a record is no JSON: {error}", "pass notes of JSON values") from error
        self._class_names = tuple(facts.get("class_names", ()))
        self._thread = threading.Thread(target=self._run, name="flss-record", daemon=True)
        self._thread.start()

    def write(self, result: StreamResult) -> None:
        """Take a result; it is written within the next second. After `close`, or with a disk that hangs, it is lost."""
        if self._ending or len(self._lines) >= _MOST_HELD:
            self._dropped += 1
        else:
            self._lines.append(result.to_json(self._class_names))

    def end(self) -> None:
        """Take no more; what is left is written soon."""
        self._ending = True
        self._end.put(None)

    def close(self) -> None:
        """Write what is left; twice is fine."""
        self.end()
        if self._thread is not None:
            if not wait_until(lambda: self._written, _CLOSE_S):
                _log.error("%s could not be closed: the disk does not answer", self.path)
        elif not self._file.closed:
            self._file.close()

    def _run(self) -> None:
        try:
            while not self._ending:
                with suppress(Empty):
                    self._end.get(timeout=_EVERY_S)
                self._flush()
            self._flush()
        finally:
            self._ending = True  # also where this thread fails: what comes now is counted as lost
            try:
                self._file.close()
            except OSError as error:
                self._failing = True
                self._report(error)
            finally:
                self._written = True

    def _flush(self) -> None:
        """Write what there is; what the disk does not take is tried again."""
        try:
            while self._lines:
                entry = self._lines[0]
                line = entry if isinstance(entry, bytes) else self._encoded(entry)
                self._file.write(line)
                self._lines.popleft()
                self._buffered += bool(line) and line is not entry
            self._file.flush()
        except OSError as error:  # a full disk: the stream goes on without its record
            self._failing = True
            self._report(error)
        else:
            self._buffered, self._failing = 0, False

    def _encoded(self, entry: Json) -> bytes:
        """Return its line; nothing where it has none, for one frame must not cost the others their record."""
        try:
            return _line(entry)
        except Exception as error:
            self._dropped += 1
            self._report(error)
            return b""

    def _report(self, error: Exception) -> None:
        if type(error) not in self._reported:  # once a kind, as the stream itself does
            self._reported.add(type(error))
            what = error.strerror or error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            _log.error("frames cannot be recorded in %s: %s", self.path, what)


class FrameRecords:
    """Reads what a `FrameRecorder` wrote: iterate for pairs of header and frame, JSON objects both.

    Args:
        path: The file.

    Attributes:
        cut: Lines that a crash cut off, as far as it has been read: each is the last one of its stream.

    Raises:
        DataError: The file cannot be read, or is no such record; when it is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.cut = 0

    def __iter__(self) -> Iterator[tuple[Json, Json]]:
        header: Json | None = None
        self.cut = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    entry = _entry(line)
                    if entry is None:
                        self.cut += 1
                    elif "header" in entry:
                        header = entry["header"]
                    elif header is None:
                        raise DataError(f"{self.path} does not begin with a header", "pass what FrameRecorder wrote")
                    else:
                        yield header, entry
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}", "correct the path") from error
        if header is None:
            raise DataError(f"{self.path} holds no record of frames", "pass what FrameRecorder wrote")


def _open(path: Path) -> BinaryIO:
    """Open a file to be continued on a line of its own."""
    try:
        file = path.open("ab")
        if file.tell():
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read() != b"\n":  # cut off by a crash
                    file.write(b"\n")
    except OSError as error:
        fix = "check that the folder exists, can be written to and has free space, or choose another file"
        raise OutputError(f"cannot write {path}: {error.strerror or error}", fix) from error
    return file


def _line(entry: Json) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> Json | None:
    """Return the object in a line, None where it was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:  # also of bytes that are no UTF-8
        return None
    return entry if isinstance(entry, dict) else None

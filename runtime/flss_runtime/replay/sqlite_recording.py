"""The SQLite files (.db3) that rosbag2 wrote by default before Iron, read with the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flss_runtime.errors import DataError
from flss_runtime.replay.recordings import RawMessage, Topic


class SqliteRecording:
    """One .db3 file, whole or cut off; it is opened for reading only.

    Messages come in the order they were written, one at a time.

    Args:
        path: The file.
        known_as: Its name for whoever passed it; another one where it was unpacked.

    Raises:
        DataError: It is no rosbag2 file, or nothing of it can be read.
    """

    def __init__(self, path: Path, known_as: Path) -> None:
        self._name = known_as
        self.damage: list[str] = []
        self.share = 0.0
        # What was written ahead is beside the file and needs locks; without it the folder may be read-only.
        immutable = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
        try:
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True)
        except sqlite3.Error as error:
            raise _unreadable(known_as, error) from error
        try:
            self._database.execute("PRAGMA writable_schema=ON")  # else SQLite refuses a file that was cut off entirely
            rows = self._database.execute("SELECT id, name, type, serialization_format FROM topics ORDER BY id")
            self._ids: dict[tuple[str, str, str], int] = {}
            for key, *topic in rows:
                if all(isinstance(each, str) for each in topic):
                    self._ids[topic[0], topic[1], topic[2]] = key
                else:
                    self.damage.append(f"{known_as} has a topic whose name, type and serialisation are {topic}")
        except sqlite3.Error as error:
            self.close()
            raise _unreadable(known_as, error) from error
        counts = self._counts()
        self.topics = tuple(
            Topic(*topic, None if counts is None else counts.get(key, 0)) for topic, key in self._ids.items()
        )

    def messages(self, topic: Topic) -> Iterator[RawMessage]:
        """Yield the messages of a topic, as `Recording.messages`."""
        key = self._ids.get((topic.name, topic.kind, topic.serialization))
        number = 0
        try:
            rows = self._database.execute("SELECT timestamp, data FROM messages WHERE topic_id = ? ORDER BY id", (key,))
            for number, (timestamp, data) in enumerate(rows, 1):
                self.share = number / topic.count if topic.count else 0.0
                yield RawMessage(timestamp, data) if isinstance(data, bytes) else RawMessage(timestamp, b"")
        except sqlite3.Error as error:
            self.damage.append(f"{self._name} is cut off or damaged after message {number:,} of {topic.name} ({error})")
        self.share = 1.0

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _counts(self) -> dict[int, int] | None:
        try:
            return dict(self._database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"))
        except sqlite3.Error:  # a damaged one is noted where its messages are read
            return None


def _unreadable(path: Path, error: sqlite3.Error) -> DataError:
    problem = f"{path} is no rosbag2 file, cannot be opened, or is damaged where it begins ({error})"
    return DataError(problem, "check its permissions, or record or copy it again")

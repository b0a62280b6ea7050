"""MCAP files (https://mcap.dev/spec), read from front to back so that one that was cut off gives what it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from flss_runtime.errors import DataError, EngineUnavailable
from flss_runtime.replay.recordings import RawMessage, Topic

MAGIC = b"\x89MCAP0\r\n"
Key: TypeAlias = "tuple[str, str, str]"  # topic, type, serialisation
Contents: TypeAlias = "tuple[dict[int, Key], Counter[int]]"  # channel -> what it carries, and its messages


def require_mcap() -> None:
    """Refuse what needs the library before any work is done.

    Raises:
        EngineUnavailable: It is not installed.
    """
    try:
        import mcap.reader  # noqa: F401
    except ImportError as error:
        raise EngineUnavailable(f"mcap cannot be imported ({error})", "pip install 'flss-edge[mcap]'") from error


class McapRecording:
    """One .mcap file, with or without an index, whole or cut off.

    A chunk that is damaged is left out and named; where a record is, the rest of the file is. Messages come in the
    order of the file, which is that of recording, and one chunk at a time is in memory.

    Args:
        path: The file.
        known_as: Its name for whoever passed it; another one where it was unpacked.

    Raises:
        DataError: It is no MCAP file.
        EngineUnavailable: The library is not installed.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, known_as: Path) -> None:
        require_mcap()
        self._path = path
        self._name = known_as
        self._size = path.stat().st_size
        self._place = 0
        self.damage: list[str] = []
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{known_as} is no MCAP file", "pass a bag that was recorded with ROS 2, or convert it")
            contents = _read_summary(file, self._size)
        self._channels, counts = contents or self._count()
        self._place = 0
        totals: Counter[Key] = Counter()  # several publishers of one topic are several channels
        for channel, key in self._channels.items():
            totals[key] += counts[channel]
        self.topics = tuple(Topic(*key, count) for key, count in sorted(totals.items()))

    @property
    def share(self) -> float:
        """How much of the file was read."""
        return self._place / self._size

    def messages(self, topic: Topic) -> Iterator[RawMessage]:
        """Yield the messages of a topic, as `Recording.messages`."""
        from mcap.records import Message

        key = topic.name, topic.kind, topic.serialization
        count = 0
        for record in self._records():
            if isinstance(record, Message) and self._channels.get(record.channel_id) == key:
                count += 1
                yield RawMessage(record.log_time, record.data)
        if count < (topic.count or 0) and not self.damage:  # a record that was damaged into another one
            self.damage.append(
                f"{self._name} has {count:,} messages of {topic.name}, though its index lists {topic.count:,}"
            )

    def _count(self) -> Contents:
        """Go through a file that does not say itself what it holds."""
        from mcap.records import Channel, Message, Schema

        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        counts: Counter[int] = Counter()
        for record in self._records():
            if isinstance(record, Message):
                counts[record.channel_id] += 1
            elif isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
        return _described(channels, schemas), counts

    def _records(self) -> Iterator[Any]:
        """Yield schemas, channels and messages up to the end of the data, and note what is damaged."""
        from mcap.records import Channel, Chunk, DataEnd, Message, Schema
        from mcap.stream_reader import StreamReader, breakup_chunk

        self.damage.clear()
        with self._path.open("rb") as file:
            reader = StreamReader(file, emit_chunks=True, record_size_limit=self._size)
            records = reader.records
            while True:
                self._place = file.tell()
                try:
                    record = next(records)
                except Exception as error:  # whatever the bytes of a damaged record lead to
                    self._note(f"is cut off or damaged at byte {self._place:,} of {self._size:,}", error)
                    self._place = self._size
                    return
                if isinstance(record, DataEnd):
                    self._place = self._size
                    return
                if isinstance(record, Chunk):
                    try:
                        contents = breakup_chunk(record, validate_crc=True)
                    except Exception as error:
                        self._note(
                            f"has a damaged chunk of {len(record.data):,} bytes before byte {file.tell():,}", error
                        )
                        continue
                    yield from contents
                elif isinstance(record, (Schema, Channel, Message)):
                    yield record

    def _note(self, what: str, error: Exception) -> None:
        self.damage.append(f"{self._name} {what} ({str(error) or type(error).__name__})")


def _read_summary(file: IO[bytes], size: int) -> Contents | None:
    """Read the list of contents at the end of a file; None where it has none or was cut off."""
    from mcap.reader import SeekingReader

    if size < 2 * len(MAGIC):
        return None
    file.seek(-len(MAGIC), 2)
    if file.read() != MAGIC:
        return None
    file.seek(0)
    try:
        summary = SeekingReader(file, record_size_limit=size).get_summary()
    except Exception:  # damaged: what the file holds is counted instead
        return None
    if summary is None or summary.statistics is None or not summary.channels:
        return None
    return _described(summary.channels, summary.schemas), Counter(summary.statistics.channel_message_counts)


def _described(channels: Mapping[int, Any], schemas: Mapping[int, Any]) -> dict[int, Key]:
    """Say what each channel carries; a channel without schema has no type."""
    kinds = {key: _kind(schema.name) for key, schema in schemas.items()}
    return {
        key: (channel.topic, kinds.get(channel.schema_id, ""), channel.message_encoding)
        for key, channel in channels.items()
    }


def _kind(name: str) -> str:
    """Give a type its full name: some writers leave "msg" out."""
    package, _, rest = name.partition("/")
    return f"{package}/msg/{rest}" if rest and "/" not in rest else name

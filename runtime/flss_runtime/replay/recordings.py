"""What a bag is to the rest of the replay, whatever file format it has: topics, and their messages in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of a bag.

    Attributes:
        name: Such as "/camera/image_raw".
        kind: Type of its messages, such as "sensor_msgs/msg/Image".
        serialization: How they are serialised; "cdr" of ROS 2.
        count: How many messages there are; None where the bag does not say.
    """

    name: str
    kind: str
    serialization: str
    count: int | None


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One message as it was recorded.

    Attributes:
        log_time_ns: When it was recorded, in nanoseconds.
        data: The serialised message.
        error: Why there is none, otherwise empty.
    """

    log_time_ns: int
    data: bytes
    error: str = ""


class Recording(Protocol):
    """A bag that was opened."""

    @property
    def topics(self) -> Sequence[Topic]:
        """Its topics."""
        ...

    @property
    def damage(self) -> Sequence[str]:
        """What could not be read so far, and why; empty for a sound bag."""
        ...

    @property
    def share(self) -> float:
        """How much of it `messages` has gone through, from 0 to 1."""
        ...

    def messages(self, topic: Topic) -> Iterator[RawMessage]:
        """Yield the messages of a topic in the order they were recorded; where the bag is damaged, those that are left.

        Raises:
            DataError: It cannot be read at all.
        """
        ...


class JoinedRecording:
    """The files of one bag, one after the other.

    Args:
        parts: Its files, in order.
        damage: What is known to be missing before anything was read.
    """

    def __init__(self, parts: Sequence[Recording], damage: Sequence[str] = ()) -> None:
        self._parts = parts
        self._read = 0  # parts
        self._known = list(damage)
        merged: dict[tuple[str, str, str], Topic] = {}
        for topic in (topic for part in parts for topic in part.topics):
            key = (topic.name, topic.kind, topic.serialization)
            if key in merged:
                counts = merged[key].count, topic.count
                topic = replace(topic, count=None if None in counts else sum(count or 0 for count in counts))
            merged[key] = topic
        self.topics = tuple(merged.values())

    @property
    def damage(self) -> list[str]:
        """What could not be read so far, and why."""
        return [*self._known, *(problem for part in self._parts for problem in part.damage)]

    @property
    def share(self) -> float:
        """How much `messages` has gone through; every file counts alike."""
        within = self._parts[self._read].share if self._read < len(self._parts) else 0.0
        return (self._read + within) / len(self._parts)

    def messages(self, topic: Topic) -> Iterator[RawMessage]:
        """Yield the messages of a topic, file by file; a file that lacks it is passed over."""
        self._read = 0
        for part in self._parts:
            for own in part.topics:  # its count is of this file alone
                if replace(own, count=topic.count) == topic:
                    yield from part.messages(own)
            self._read += 1

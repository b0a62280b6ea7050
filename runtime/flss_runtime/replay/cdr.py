"""The Common Data Representation (CDR), in which ROS 2 serialises messages, as far as images and decisions need it.

Source: OMG DDS Interoperability Wire Protocol 2.5, section 10 (encapsulation), and CORBA 3.4, section 9.3 (CDR): four
bytes say the byte order, then numbers follow at multiples of their own size, counted from behind these four bytes; a
string is its length with the closing zero, its bytes and that zero; a sequence is its length and its elements.
"""

from __future__ import annotations

import struct
from typing import Any

from flss_runtime.errors import DataError

_HEADER = 4
_BYTE_ORDERS = {0x00: ">", 0x01: "<", 0x06: ">", 0x07: "<"}  # plain CDR of both versions, which differ above 4 bytes
_LITTLE_ENDIAN = b"\x00\x01\x00\x00"
_CODES = {"bool": "?", "uint8": "B", "int32": "i", "uint32": "I", "uint64": "Q", "float32": "f"}


class CdrReader:
    """Reads one message from front to back.

    Args:
        message: The serialised message.

    Raises:
        DataError: It is no plain CDR.
    """

    def __init__(self, message: bytes | memoryview) -> None:
        view = memoryview(message)
        order = _BYTE_ORDERS.get(view[1]) if len(view) >= _HEADER and view[0] == 0 else None
        if order is None:
            raise DataError(
                f"a message of {len(view):,} bytes begins with {bytes(view[:_HEADER]).hex() or 'nothing'}, not as CDR",
                "record it with ROS 2's default serialisation",
            )
        self._view = view[_HEADER:]
        self._order = order
        self._place = 0

    def number(self, kind: str) -> Any:
        """Read a number of a type as message definitions name it.

        Raises:
            DataError: The message ends before.
        """
        code = self._order + _CODES[kind]
        size = struct.calcsize(code)
        self._place += -self._place % size
        return struct.unpack(code, self._take(size))[0]

    def text(self) -> str:
        """Read a string; bytes that are no UTF-8 are replaced.

        Raises:
            DataError: The message ends before.
        """
        return bytes(self.octets()).rstrip(b"\0").decode("utf-8", "replace")

    def octets(self) -> memoryview:
        """Read a sequence of bytes, a view of the message.

        Raises:
            DataError: The message ends before.
        """
        return self._take(self.number("uint32"))

    def _take(self, size: int) -> memoryview:
        start, self._place = self._place, self._place + size
        if self._place > len(self._view):
            raise DataError(
                f"a message of {_HEADER + len(self._view):,} bytes ends too early: it announces at least "
                f"{_HEADER + self._place:,}",
                "record it again, or see whether the topic's type is what the bag says",
            )
        return self._view[start : self._place]


class CdrWriter:
    """Writes one message from front to back, in little-endian order."""

    def __init__(self) -> None:
        self._bytes = bytearray(_LITTLE_ENDIAN)

    def number(self, kind: str, value: float) -> None:
        """Write a number of a type as message definitions name it."""
        code = "<" + _CODES[kind]
        self._bytes += bytes(-(len(self._bytes) - _HEADER) % struct.calcsize(code))
        self._bytes += struct.pack(code, value)

    def text(self, value: str) -> None:
        """Write a string, with question marks for what is no text, such as bytes of a file's name that are no UTF-8."""
        self.octets(value.encode("utf-8", "replace") + b"\0")

    def octets(self, value: bytes) -> None:
        """Write a sequence of bytes."""
        self.number("uint32", len(value))
        self._bytes += value

    def message(self) -> bytes:
        """Give the serialised message."""
        return bytes(self._bytes)

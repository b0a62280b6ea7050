"""One engine in the cache: what it was built from and for, where it lies, what the gate said of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flss_runtime.cache_files import read_object, write_object

ENGINE_NAME, KEY_NAME, VERDICT_NAME = "engine.bin", "key.json", "verdict.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What an engine was built from and for; another value of any of it is another engine.

    Attributes:
        graph: SHA-256 of the ONNX file. It covers the precision, which is a fact of the graph.
        library: Name and version, such as "tensorrt 11.4.0.106".
        target: Processor it runs on, such as "sm86".
        driver: Version of the driver, or "any" where the library does not care.
        profile: Batch sizes it was built for, and whatever else the builder was told.
    """

    graph: str
    library: str
    target: str
    driver: str = "any"
    profile: str = ""

    @property
    def digest(self) -> str:
        """Name of the folder: SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        """Say for whom the engine is, in words; the graph is named elsewhere."""
        return f"{self.library} on {self.target}" + ("" if self.driver == "any" else f", driver {self.driver}")


@dataclass(frozen=True, slots=True)
class Built:
    """An engine as its builder hands it over.

    Attributes:
        content: The serialized engine.
        precision: What the builder read back of it: "fp32", "fp16", "bf16", "int8" or "none".
        seconds: Time the build took.
    """

    content: bytes
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine in the cache, or the place of a verdict on a library that builds none.

    Attributes:
        folder: Its place.
        key: What it was built from and for.
        graph_name: File name of the graph, for people.
        precision: As in `Built`.
        seconds: As in `Built`.
        size: Bytes of engine.bin; 0 without an engine.
        sha256: Of engine.bin; "" without an engine.
    """

    folder: Path
    key: CacheKey
    graph_name: str
    precision: str
    seconds: float
    size: int
    sha256: str

    def load(self) -> Built | None:
        """Read the engine; None where it is not what was stored."""
        try:
            content = (self.folder / ENGINE_NAME).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return None
        return Built(content, self.precision, self.seconds)

    def verdict(self) -> dict[str, Any] | None:
        """Return what the gate said of this engine, None where it was not asked or the answer is not readable."""
        verdict = read_object(self.folder / VERDICT_NAME)
        return verdict if verdict is not None and verdict.get("engine_sha256") == self.sha256 else None

    def store_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Keep what the gate said of this engine.

        Raises:
            OutputError: It cannot be written.
        """
        write_object(self.folder / VERDICT_NAME, {**verdict, "engine_sha256": self.sha256})


def order(entry: Entry) -> tuple[str, str, str]:
    """Return what entries are sorted by: their graphs' names, then what they are for."""
    return entry.graph_name, str(entry.key), entry.key.digest


def write_entry(entry: Entry) -> None:
    """Write an entry's key.json.

    Raises:
        OutputError: It cannot be written.
    """
    values = {name: value for name, value in asdict(entry).items() if name != "folder"}
    write_object(entry.folder / KEY_NAME, {"format": _FORMAT, **values})


def read_entries(parent: Path) -> list[Entry]:
    """Return the entries in the folders of a folder, in their `order`."""
    try:
        folders = list(parent.iterdir())
    except OSError:  # nothing was stored yet, or it is not ours to read
        return []
    return sorted((entry for folder in folders if (entry := read_entry(folder)) is not None), key=order)


def read_entry(folder: Path) -> Entry | None:
    """Return the entry in a folder, None where there is none that can be read and belongs there."""
    values = read_object(folder / KEY_NAME)
    if values is None or values.pop("format", None) != _FORMAT:
        return None
    try:
        entry = Entry(folder=folder, key=CacheKey(**values.pop("key")), **values)
    except (KeyError, TypeError):  # written by another version
        return None
    texts = entry.graph_name, entry.precision, entry.sha256, *asdict(entry.key).values()
    sound = all(isinstance(text, str) for text in texts) and isinstance(entry.size, int)
    if not sound or not isinstance(entry.seconds, int | float):  # damaged
        return None
    return entry if entry.key.digest == folder.name else None

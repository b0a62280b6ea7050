"""Built engines on this machine's disk: found by what they were built from and for, never half written (ADR 0011).

One folder an engine, named after its key, under `FLSS_EDGE_CACHE` or the user's cache directory: `engine.bin`,
`key.json` (what it is, for people and for `flss-edge doctor`) and, once it went through the gate, `verdict.json`.
Verdicts on libraries that build nothing lie in folders of their own, and so does what libraries cache for themselves.

An engine is code: whoever can write the cache directory can run what they like in the process that loads it. So it is
made for its owner alone, and engines are not loaded from a directory that is anybody's.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flss_runtime.atomic import atomic_write, one_writer
from flss_runtime.cache_files import (
    CACHE_VARIABLE,
    as_output_error,
    cache_root,
    check_private,
    make_private,
    read_object,
    write_object,
)
from flss_runtime.errors import OutputError

__all__ = ["CACHE_VARIABLE", "Built", "CacheKey", "EngineCache", "Entry", "cache_root"]

ENGINE_NAME, KEY_NAME, VERDICT_NAME = "engine.bin", "key.json", "verdict.json"
_ENGINES, _VERDICTS = "engines", "verdicts"
_FORMAT = 1

_log = logging.getLogger("flss_runtime")


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


class EngineCache:
    """The engines below one directory; it appears with the first one that is stored.

    Args:
        root: The directory; None takes `cache_root()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_root() if root is None else root

    def folder(self, key: CacheKey) -> Path:
        """Return the place of an engine, whether there is one or not."""
        return self.root / _ENGINES / key.digest

    def entry(self, key: CacheKey) -> Entry | None:
        """Return the engine of a key, None where there is none."""
        return _read_entry(self.folder(key))

    def entries(self) -> list[Entry]:
        """Return every engine that can be read, in the order of their graphs' names and targets."""
        return _read_entries(self.root / _ENGINES)

    def judged(self) -> list[Entry]:
        """Return everything that has a verdict, with an engine or without, in the same order."""
        entries = [*self.entries(), *_read_entries(self.root / _VERDICTS)]
        return sorted((entry for entry in entries if entry.verdict() is not None), key=_order)

    def store_bare(self, key: CacheKey, graph_name: str, precision: str) -> Entry:
        """Make an entry without an engine, to keep a verdict in; it is none of `entries`.

        Raises:
            OutputError: It cannot be written.
        """
        folder = self.root / _VERDICTS / key.digest
        make_private(folder)
        entry = Entry(folder, key, graph_name, precision, 0.0, 0, "")
        _write_entry(entry)
        return entry

    def reserve(self, key: CacheKey) -> None:
        """Make the folder of an engine, to learn before a long build that it could not be stored.

        Raises:
            OutputError: It cannot be made.
        """
        make_private(self.folder(key))

    def store(self, key: CacheKey, graph_name: str, built: Built) -> Entry:
        """Put an engine in its place; a verdict on the one before goes.

        key.json comes last and holds the digest of engine.bin, so whoever reads in between finds no entry.

        Raises:
            OutputError: It cannot be written.
        """
        folder = self.folder(key)
        digest = hashlib.sha256(built.content).hexdigest()
        entry = Entry(folder, key, graph_name, built.precision, built.seconds, len(built.content), digest)
        make_private(folder)
        for name in (VERDICT_NAME, KEY_NAME):
            with as_output_error(folder):
                (folder / name).unlink(missing_ok=True)
        with atomic_write(folder / ENGINE_NAME) as temporary:
            temporary.write_bytes(built.content)
        _write_entry(entry)
        return entry

    def obtain(
        self,
        key: CacheKey,
        graph_name: str,
        build: Callable[[], Built],
        *,
        say: Callable[[str], None] = _log.warning,
        rebuild: bool = False,
    ) -> Built:
        """Return the engine of a key: the stored one, or a new one, which is stored.

        Of two processes that need the same engine one builds, and the other waits and takes it. Where nothing can be
        stored (a read-only directory, a full disk) the engine is used all the same, and `say` says so.

        Args:
            key: What is needed.
            graph_name: For messages.
            build: Makes the engine.
            say: Takes one line before a build that names its reason, and one if the engine could not be stored.
            rebuild: Whether to build even if there is one.

        Returns:
            The engine.

        Raises:
            OutputError: Others could have put their code into the cache.
        """
        check_private(self.root, self.root / _ENGINES, self.folder(key))
        before = self.entry(key)
        if not rebuild and before is not None and (stored := before.load()) is not None:
            return stored
        with self._one_builder(key):
            now = self.entry(key)
            if now is not None and (now != before or not rebuild) and (stored := now.load()) is not None:
                return stored  # somebody else was faster
            say(self._why(key, graph_name, before, rebuild))
            built = build()
            try:
                self.store(key, graph_name, built)
            except OutputError as error:
                say(f"the engine for {graph_name} cannot be kept, so it will be built again next time: {error.problem}")
            return built

    def _why(self, key: CacheKey, graph_name: str, before: Entry | None, rebuild: bool) -> str:
        if before is not None:
            reason = "building again, as asked" if rebuild else "the stored file is damaged: rebuilding"
            return f"engine for {graph_name}: {reason}, {_about(before.seconds)}"
        library = key.library.partition(" ")[0]  # another library's engine and time say nothing about this one
        others = [entry for entry in self.entries() if entry.key.graph == key.graph]
        others = [entry for entry in others if entry.key.library.partition(" ")[0] == library]
        if not others:
            return f"engine for {graph_name}: none for {key} yet, building it"
        nearest = max(others, key=lambda entry: (entry.key.target == key.target, entry.key.library == key.library))
        profile = ", another profile" if str(nearest.key) == str(key) else ""
        return f"engine for {graph_name}: built for {nearest.key}{profile}, found {key}: rebuilding, " + _about(
            nearest.seconds
        )

    @contextmanager
    def _one_builder(self, key: CacheKey) -> Iterator[None]:
        folder = self.folder(key)
        try:
            make_private(folder)
        except OutputError:  # storing will fail too, and say so
            yield
            return
        with one_writer(folder):
            yield


def _about(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds >= 1 else "about a second"


def _order(entry: Entry) -> tuple[str, str, str]:
    return entry.graph_name, str(entry.key), entry.key.digest


def _write_entry(entry: Entry) -> None:
    values = {name: value for name, value in asdict(entry).items() if name != "folder"}
    write_object(entry.folder / KEY_NAME, {"format": _FORMAT, **values})


def _read_entries(parent: Path) -> list[Entry]:
    try:
        folders = list(parent.iterdir())
    except OSError:  # nothing was stored yet, or it is not ours to read
        return []
    return sorted((entry for folder in folders if (entry := _read_entry(folder)) is not None), key=_order)


def _read_entry(folder: Path) -> Entry | None:
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

"""Built engines on this machine's disk: found by what they were built from and for, never half written (ADR 0011).

One folder an engine, named after its key, under `FLSS_EDGE_CACHE` or the user's cache directory: `engine.bin`,
`key.json` (what it is, for people and for `flss-edge doctor`) and, once it went through the gate, `verdict.json`.
Verdicts on libraries that build nothing lie in folders of their own, and so does what libraries cache for themselves.

An engine is code: whoever can write the cache directory can run what they like in the process that loads it. So it is
made for its owner alone, and engines are not loaded from a directory that is anybody's.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flss_runtime.atomic import one_writer
from flss_runtime.cache_files import (
    CACHE_VARIABLE,
    as_output_error,
    cache_root,
    cache_write,
    check_private,
    discard,
    make_private,
    try_writing,
)
from flss_runtime.engine_entry import (
    ENGINE_NAME,
    KEY_NAME,
    VERDICT_NAME,
    Built,
    CacheKey,
    Entry,
    order,
    read_entries,
    read_entry,
    write_entry,
)
from flss_runtime.errors import OutputError

__all__ = [
    "CACHE_VARIABLE",
    "ENGINE_NAME",
    "KEY_NAME",
    "VERDICT_NAME",
    "Built",
    "CacheKey",
    "EngineCache",
    "Entry",
    "cache_root",
]

_ENGINES, _VERDICTS = "engines", "verdicts"

_log = logging.getLogger("flss_runtime")


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
        return read_entry(self.folder(key))

    def entries(self) -> list[Entry]:
        """Return every engine that can be read, in the order of their graphs' names and targets."""
        return read_entries(self.root / _ENGINES)

    def judged(self) -> list[Entry]:
        """Return everything that has a verdict, with an engine or without, in the same order."""
        entries = [*self.entries(), *read_entries(self.root / _VERDICTS)]
        return sorted((entry for entry in entries if entry.verdict() is not None), key=order)

    def store_bare(self, key: CacheKey, graph_name: str, precision: str) -> Entry:
        """Make an entry without an engine, to keep a verdict in; it is none of `entries`.

        Raises:
            OutputError: It cannot be written.
        """
        folder = self.root / _VERDICTS / key.digest
        make_private(folder)
        entry = Entry(folder, key, graph_name, precision, 0.0, 0, "")
        write_entry(entry)
        return entry

    def reserve(self, key: CacheKey, size: int = 0) -> None:
        """Make the folder of an engine, to learn before a long build that it could not be stored.

        Args:
            key: What the engine will be known by.
            size: Bytes that it will take, roughly.

        Raises:
            OutputError: The folder cannot be made, or holds no file of this size.
        """
        make_private(self.folder(key))
        with as_output_error(self.folder(key)):
            try_writing(self.folder(key), size)

    def check(self) -> None:
        """Find out whether engines can be kept here and loaded again, changing nothing.

        Raises:
            OutputError: Others could put their code into the cache, or it cannot be written to.
        """
        check_private(self.root, *(self.root / name for name in (_ENGINES, _VERDICTS)))
        check_private(*(entry.folder for entry in self.entries()))
        place = self.root / _ENGINES
        with as_output_error(self.root):
            try_writing(next(folder for folder in (place, *place.parents) if folder.exists()))

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
            discard(folder / name)
        with cache_write(folder / ENGINE_NAME) as temporary:
            temporary.write_bytes(built.content)
        write_entry(entry)
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
        with self._one_builder(key, lambda: say(f"engine for {graph_name}: another process builds it, waiting")):
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
        if any(os.path.lexists(self.folder(key) / name) for name in (KEY_NAME, ENGINE_NAME)):
            return f"engine for {graph_name}: what is stored cannot be read: rebuilding"
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
    def _one_builder(self, key: CacheKey, on_wait: Callable[[], None]) -> Iterator[None]:
        folder = self.folder(key)
        try:
            make_private(folder)
        except OutputError:  # storing will fail too, and say so
            yield
            return
        with one_writer(folder, on_wait):
            yield


def _about(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds >= 1 else "about a second"

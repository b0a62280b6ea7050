"""JSON as the bundle format allows it (docs/bundle-format.md, section 2): strict, bounded, with a canonical form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flss_runtime.errors import BundleError

MAX_JSON_BYTES = 1 << 20
EXPORT_AGAIN = "copy the bundle again, or make it again: flss-edge export CHECKPOINT -o BUNDLE --overwrite"

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Json = dict[str, Any]


class Fields:
    """One JSON object with typed access; every complaint names the file and the key."""

    def __init__(self, values: object, where: str) -> None:
        """Wrap `values`, which `where` (a file, or a file and a key) holds.

        Raises:
            BundleError: `values` is not an object.
        """
        self.where = where
        if not isinstance(values, dict):
            raise BundleError(f"{where}: expected an object, found {describe(values)}", EXPORT_AGAIN)
        self._values: Json = values

    def fail(self, key: str, expected: str) -> BundleError:
        """Return the error for `key`: what was expected and what was found."""
        found = describe(self._values[key]) if key in self._values else "nothing"
        return BundleError(f"{self.where}: {key!r} must be {expected}; found {found}", EXPORT_AGAIN)

    def integer(self, key: str, low: int, high: int | None = None) -> int:
        """Return an integer in [low, high]."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise self.fail(key, f"an integer >= {low}" if high is None else f"an integer from {low} to {high}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number >= 0."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value) or value < 0:
            raise self.fail(key, "a finite number >= 0")
        return float(value)

    def text(self, key: str) -> str:
        """Return a printable string of 1 to 200 characters."""
        value = self._values.get(key)
        if not is_printable(value):
            raise self.fail(key, "a string of 1 to 200 printable characters")
        return str(value)

    def sha256(self, key: str) -> str:
        """Return a digest of 64 lower-case hexadecimal digits."""
        value = self._values.get(key)
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self.fail(key, "a SHA-256 of 64 lower-case hex digits")
        return value

    def choice(self, key: str, allowed: Iterable[str]) -> str:
        """Return a string that is one of `allowed`."""
        value, options = self._values.get(key), tuple(allowed)
        if not isinstance(value, str) or value not in options:
            raise self.fail(key, "one of " + ", ".join(options))
        return value

    def object(self, key: str) -> Fields:
        """Return a nested object."""
        if not isinstance(self._values.get(key), dict):
            raise self.fail(key, "an object")
        return Fields(self._values[key], f"{self.where}: {key}")

    def array(self, key: str) -> list[Any]:
        """Return a list."""
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self.fail(key, "an array")
        return value

    def keys(self) -> list[str]:
        """Return the keys present."""
        return list(self._values)


def read_json(path: Path) -> tuple[Json, bytes]:
    """Read one JSON object under the format's rules (section 2); also return its bytes, for the digest.

    Raises:
        BundleError: Unreadable, over 1 MiB, not UTF-8, not one object, duplicate keys, NaN or infinity.
    """
    name = path.name
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})", EXPORT_AGAIN) from error
    if len(raw) > MAX_JSON_BYTES:
        raise BundleError(f"{name} is larger than 1 MiB, the most that the format allows", EXPORT_AGAIN)
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        canonical_json(value)  # finds unpaired surrogates and numbers that overflowed to infinity
    except (ValueError, RecursionError) as error:
        detail = "empty file" if not raw.strip() else str(error) or "nested too deeply"
        raise BundleError(f"{name} is not valid JSON (truncated or edited?): {detail}", EXPORT_AGAIN) from error
    if not isinstance(value, dict):
        raise BundleError(f"{name}: expected an object, found {describe(value)}", EXPORT_AGAIN)
    return value, raw


def canonical_json(value: object) -> bytes:
    """Return the canonical JSON of section 2, the bytes that digests are taken over.

    Raises:
        ValueError: The value holds NaN, infinity or an unpaired surrogate.
        TypeError: The value holds something that JSON cannot express.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def file_json(value: Json) -> bytes:
    """Return the JSON as it is written to disk: readable, in the order given, and checked against the rules.

    Raises:
        BundleError: The value cannot be expressed, or is over 1 MiB.
    """
    try:
        canonical_json(value)
        raw = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        fix = "pass strings, bools, lists, dicts and finite Python numbers (not NumPy's)"
        raise BundleError(f"the metadata cannot be written as JSON: {error}", fix) from error
    if len(raw) > MAX_JSON_BYTES:
        raise BundleError("the metadata is larger than 1 MiB", "shorten the training summary or the class names")
    return raw


def describe(value: object) -> str:
    """Return a short, printable description of a JSON value, for messages."""
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def is_printable(value: object) -> bool:
    """Return whether a value is a string of 1 to 200 characters that is safe to show on a terminal."""
    return isinstance(value, str) and 1 <= len(value) <= 200 and not _UNPRINTABLE.search(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")

"""Whether the files of a bundle are the ones that its manifest lists, and lie inside it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from flss_runtime.errors import BundleError
from flss_runtime.manifest import MANIFEST_NAME, POLICY_NAME
from flss_runtime.strict_json import EXPORT_AGAIN

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def bundle_directory(path: Path) -> Path:
    """Return the resolved directory of a bundle.

    Raises:
        BundleError: Missing, a file, or a folder without a manifest.
    """
    try:
        exists, is_directory = os.path.lexists(path), os.path.isdir(path)
    except ValueError:  # a NUL in the name
        exists = is_directory = False
    if is_directory:
        root = path.resolve()
        if not os.path.lexists(root / MANIFEST_NAME):
            fix = "pass the folder that flss-edge export wrote (it holds manifest.json)"
            raise BundleError(f"{path} has no {MANIFEST_NAME}, so it is not a bundle", fix)
        return root
    if not exists:
        raise BundleError(f"bundle {str(path)!r} does not exist", "pass the folder that flss-edge export wrote")
    fix = "pass the folder that flss-edge export wrote"
    if path.suffix in CHECKPOINT_SUFFIXES:
        fix = f"that looks like a checkpoint: export it first with flss-edge export {path}"
    raise BundleError(f"{path} is a file; a bundle is a folder", fix)


def file_inside(root: Path, name: str) -> Path:
    """Return the resolved place of a file of the bundle: regular, and below `root` whatever links lead there.

    Raises:
        BundleError: Missing, a special file, or a link that leaves the bundle.
    """
    try:
        place = (root / name).resolve(strict=True)
        is_regular = stat.S_ISREG(place.stat().st_mode)
    except FileNotFoundError as error:
        raise BundleError(f"{root.name}: {name} is missing", EXPORT_AGAIN) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(f"{root.name}: {name} cannot be read ({error})", EXPORT_AGAIN) from error
    if not place.is_relative_to(root):
        problem = f"{root.name}: {name} is a link that leaves the bundle (to {place})"
        raise BundleError(problem, "copy the file itself into the bundle (cp -L), or export again")
    if not is_regular:
        raise BundleError(f"{root.name}: {name} is not a regular file", EXPORT_AGAIN)
    return place


def refuse_unlisted(root: Path, listed: Iterable[str]) -> None:
    """Refuse entries that the manifest does not list; names that begin with a dot are ignored.

    Raises:
        BundleError: There is one.
    """
    known = {MANIFEST_NAME, POLICY_NAME, *listed}
    extra = sorted(name for name in os.listdir(root) if name not in known and not name.startswith("."))
    if extra:
        # An unlisted file could be a graph's external data, which no digest would cover.
        problem = f"{root.name}: {extra[0]!r} is not listed in {MANIFEST_NAME}"
        raise BundleError(problem, "move it out of the bundle; a bundle holds only what its manifest lists")


def check_file(place: Path, sha256: str, size: int) -> None:
    """Compare a file with what the manifest says of it.

    Raises:
        BundleError: Truncated, altered or unreadable.
    """
    found_size = place.stat().st_size
    if found_size > size:
        problem = f"{place.name} was altered: expected {size} bytes (sha256 {sha256[:12]}…), found {found_size} bytes"
        raise BundleError(problem, EXPORT_AGAIN)
    try:
        found = sha256_file(place)
    except OSError as error:
        raise BundleError(f"{place.name} cannot be read ({error.strerror})", EXPORT_AGAIN) from error
    if found != sha256:
        what = "is truncated" if found_size < size else "was altered"
        expected = f"expected sha256 {sha256[:12]}… ({size} bytes)"
        raise BundleError(f"{place.name} {what}: {expected}, found {found[:12]}… ({found_size} bytes)", EXPORT_AGAIN)

"""What a campaign has done so far: in memory, or in a folder that survives a kill."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_edge.classifiers.answers import Answers
from flss_edge.run_folder import locked, readable_errors
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import DataError, OutputError

IDENTITY = "campaign.json"
PIECES = "pieces"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Piece:
    """One attack on one batch.

    Attributes:
        images: (B, 3, H, W) float32, attacked.
        answers: classifier name -> its answers to them.
        seconds: time that the attack took.
    """

    images: npt.NDArray[np.float32]
    answers: Mapping[str, Answers]
    seconds: float


class State:
    """Finished pieces by attack and batch.

    Args:
        folder: where they are kept; None keeps them in memory, without the images once a batch is finished.
        keep_images: keep the images of finished batches in memory as well.
    """

    def __init__(self, folder: Path | None = None, *, keep_images: bool = False) -> None:
        self.folder = folder
        self._keep = keep_images
        self._pieces: dict[tuple[str, int], Piece] = {}
        self._arrays: dict[tuple[str, int], Arrays] = {}

    def load(self, attack: str, start: int) -> Piece | None:
        """Return a finished piece, or None."""
        if self.folder is None:
            return self._pieces.get((attack, start))
        path = self._path(attack, start)
        return _read_piece(path) if path.exists() else None

    def save(self, attack: str, start: int, piece: Piece) -> None:
        """Keep a finished piece.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            self._pieces[attack, start] = piece
        else:
            _write(self._path(attack, start), _flat(piece))

    def has_arrays(self, name: str, start: int) -> bool:
        """Return whether a probe has measured the batch."""
        return (name, start) in self._arrays if self.folder is None else self._path(f"probe {name}", start).exists()

    def load_arrays(self, name: str, start: int) -> Arrays:
        """Return what a probe measured on the batch."""
        return self._arrays[name, start] if self.folder is None else _read(self._path(f"probe {name}", start))

    def save_arrays(self, name: str, start: int, arrays: Arrays) -> None:
        """Keep what a probe measured on the batch.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            self._arrays[name, start] = dict(arrays)
        else:
            _write(self._path(f"probe {name}", start), arrays)

    def finish_batch(self, start: int) -> None:
        """Drop what only the rest of the batch needed."""
        if self.folder is None and not self._keep:
            for (attack, at), piece in list(self._pieces.items()):
                if at == start:
                    self._pieces[attack, at] = Piece(piece.images[:0], piece.answers, piece.seconds)

    def _path(self, name: str, start: int) -> Path:
        assert self.folder is not None
        plain = "".join(character if character.isalnum() or character in "-.@" else "_" for character in name)
        return self.folder / PIECES / f"{plain}-{start:06d}.npz"


@contextmanager
def occupied(folder: Path, identity: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Claim the folder of a campaign, new or half done, and keep other campaigns out of it within the block.

    Args:
        folder: made where it is absent.
        identity: everything that decides the result; a folder of another campaign is refused.
        overwrite: forget the pieces that are in it.

    Raises:
        OutputError: it holds another campaign, is in use, or cannot be written.
    """
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "another evaluation is running in"):
        _refuse_foreign(folder)
        known, wanted = folder / IDENTITY, json.loads(json.dumps(identity))
        with readable_errors(folder):
            (folder / PIECES).mkdir(exist_ok=True)
        if overwrite:
            with readable_errors(folder):
                for piece in (folder / PIECES).glob("*.npz"):
                    piece.unlink()
        elif known.exists():
            _refuse_another(folder, _read_json(known), wanted)
        with atomic_write(known) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        yield


def _refuse_foreign(folder: Path) -> None:
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if found and not (folder / IDENTITY).exists():
        raise OutputError(f"{folder} holds other files ({', '.join(found[:3])})", "choose another --folder")


def _refuse_another(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        key = differing[0]
        raise OutputError(
            f"{folder} holds another evaluation: {', '.join(differing)} differ "
            f"({key} is {str(found.get(key))[:80]} there and {str(wanted.get(key))[:80]} here)",
            "choose another --folder, or forget what is there with --overwrite",
        )


def _flat(piece: Piece) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {"images": piece.images, "seconds": np.array(piece.seconds)}
    for name, answers in piece.answers.items():
        arrays |= {f"labels {name}": answers.labels, f"scores {name}": answers.scores}
        arrays[f"accepted {name}"] = answers.accepted
    return arrays


def _read_piece(path: Path) -> Piece:
    arrays = _read(path)
    names = [key.removeprefix("labels ") for key in arrays if key.startswith("labels ")]
    answers = {
        name: Answers(arrays[f"labels {name}"], arrays[f"scores {name}"], arrays[f"accepted {name}"]) for name in names
    }
    return Piece(arrays["images"], answers, float(arrays["seconds"]))


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error})", "delete this file; the evaluation makes it again"
        ) from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "start anew with --overwrite") from error
    return found if isinstance(found, dict) else {}


def _write(path: Path, arrays: Arrays) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)

"""The state file of a training run: everything it needs to go on, and whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flss_edge.checkpoint import torch_bytes
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import CheckpointError, UsageError

STATE_VERSION = 2


def write_state(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the file atomically: a kill at any moment leaves the old state or the new one.

    Args:
        path: of the file.
        identity: what must be equal where the run goes on: recipe, network, data.
        state: tensors, numbers, texts, and lists and dictionaries of them.

    Raises:
        OutputError: the file cannot be written.
    """
    content = torch_bytes({"version": STATE_VERSION, "identity": identity, **state})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_state(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what `write_state` was given, tensors on `device`.

    Raises:
        UsageError: the state belongs to another recipe, network or data set.
        CheckpointError: it cannot be read, or is of another format.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        version, found = state["version"], state["identity"]
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__})", "Start anew with --overwrite."
        ) from error
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path} has state format {version}; this version reads format {STATE_VERSION}",
            "Finish the run with the flss-edge version that began it, or start anew with --overwrite.",
        )
    if different := [key for key, value in identity.items() if found.get(key) != value]:
        raise UsageError(
            f"{path.parent} holds a run with other settings ({', '.join(different)})",
            "Repeat the settings it was started with, choose another --output, or start anew with --overwrite.",
        )
    return state

"""The records of a training run, as `Trainer` writes them to log.jsonl: one line every few steps, and one an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flss_runtime.errors import DataError

# What a record of the event "step" says besides the losses and their terms.
_NO_LOSS = frozenset({"event", "step", "total_steps", "lr", "momentum", "images_per_s"})


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run; a last line that a kill cut short is left out.

    Raises:
        DataError: the file cannot be read, or holds no record of a training run.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "pass the log.jsonl of a training run") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            known = isinstance(record, dict) and record["event"] in ("step", "epoch") and record["step"] > 0
        except (ValueError, KeyError, TypeError):
            known = False
        if known:
            records.append(record)
        elif number < len(lines):
            raise DataError(f"line {number} of {path} is no training record", "pass the log.jsonl of a training run")
    if not records:
        raise DataError(f"{path} holds no training record", "train for at least 20 mini-batches first")
    return records


def loss_terms(record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return each loss of a step's record with the names of its terms, which follow it; none where it has only one."""
    losses: dict[str, list[str]] = {}
    for name in record:
        if name in _NO_LOSS:
            continue
        if not losses or name.endswith("loss"):
            losses[name] = []
        else:
            losses[list(losses)[-1]].append(name)
    return {loss: tuple(terms) if len(terms) > 1 else () for loss, terms in losses.items()}


def in_words(name: str, loss: str = "") -> str:
    """Return the name of a loss or term for people, without what it shares with the loss it belongs to."""
    shared = loss.removesuffix("loss")
    words = (name.removeprefix(shared) if name != loss else name).split("_")
    return " ".join({"kl": "KL", "pgd": "PGD"}.get(word, word) for word in words)


def latest(records: Sequence[Mapping[str, Any]], event: str) -> Mapping[str, Any] | None:
    """Return the last record of an event ("step" or "epoch"), if there is one."""
    return next((record for record in reversed(records) if record["event"] == event), None)

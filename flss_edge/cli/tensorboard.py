"""The records of a training run as TensorBoard's scalars (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flss_edge.training_log import loss_terms
from flss_runtime.errors import EngineUnavailable


def require_tensorboard() -> None:
    """Refuse --tensorboard where it cannot be written, before anything is read.

    Raises:
        EngineUnavailable: the library is absent.
    """
    if find_spec("tensorboard") is None:
        raise EngineUnavailable(
            "--tensorboard needs tensorboard, which this environment does not have",
            "pip install 'flss-edge[tensorboard]', or leave it out: log.jsonl has every record anyway",
        )


class ScalarWriter:
    """Writes every record's numbers by step, each step once, however often the run was stopped or killed."""

    def __init__(self, folder: Path, first_step: int, logged: Iterable[Mapping[str, Any]]) -> None:
        """Continue the scalars, or begin them.

        Args:
            folder: for the event files.
            first_step: where the run stands; what an earlier process wrote from there on is void.
            logged: the run's records so far: all of them begin new scalars, those of `first_step` continue old ones.
        """
        from torch.utils.tensorboard import SummaryWriter

        begun = folder.exists()
        self._writer = SummaryWriter(str(folder), purge_step=first_step if begun else None)
        for record in logged:
            if not begun or record["step"] == first_step:
                self(record)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return tag -> value of a record, grouped as TensorBoard shows them."""
    if record["event"] == "epoch":
        return {
            "accuracy/selection_clean": record["selection_accuracy"],
            "accuracy/selection_pgd": record["selection_pgd_accuracy"],
            "progress/epoch": record["epoch"],
        }
    losses = loss_terms(record)
    terms = {f"{loss}/{term}": record[term] for loss, names in losses.items() for term in names}
    return {
        **{f"loss/{loss}": record[loss] for loss in losses},
        **terms,
        **{f"schedule/{name}": record[name] for name in ("lr", "momentum")},
        "progress/images_per_s": record["images_per_s"],
    }

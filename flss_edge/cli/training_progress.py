"""How a training run shows its progress on stderr: a display that is redrawn in a terminal, lines in a log.

Nothing is drawn by a thread: the training itself calls `tick` after every mini-batch, and every record is shown.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from flss_edge.cli.output import duration, say
from flss_edge.training_log import in_words, latest, loss_terms

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Record = Mapping[str, Any]

_REDRAW_S = 0.25
_HEARTBEAT_S = 60.0
_EPOCHS_SHOWN = 8


@dataclass
class RunProgress:
    """Where a run stands, and what it logged last.

    Attributes:
        position: the mini-batches that are done, asked anew each time.
        total_steps: of the whole run.
        epochs: of the whole run.
        records: of the log, oldest first.
    """

    position: Callable[[], int]
    total_steps: int
    epochs: int
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._first_step, self._started = self.position(), time.monotonic()

    @property
    def time_left(self) -> str:
        """Time that the rest takes at the mean pace since the start, measurements of the epochs included."""
        done = self.position() - self._first_step
        if not done:
            return "time left unknown"
        left = (time.monotonic() - self._started) / done * (self.total_steps - self.position())
        return f"{duration(left)} left"

    @property
    def pace(self) -> str:
        """Images a second at the last record."""
        step = latest(self.records, "step")
        return "" if step is None else f"{step['images_per_s']:,.0f} images/s"

    @property
    def measuring(self) -> bool:
        """Whether an epoch's mini-batches are all done, so that it is being measured."""
        return self.position() > 0 and self.position() % (self.total_steps // self.epochs) == 0


class PlainLines:
    """For a log: a line an epoch, and a sign of life at most once a minute."""

    def __init__(self, progress: RunProgress) -> None:
        """Show `progress`."""
        self._progress, self._said_at = progress, time.monotonic()

    def __enter__(self) -> PlainLines:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End; every line is out already."""

    def record(self, record: Record) -> None:
        """Say how an epoch ended; what a step logged waits for the next line."""
        self._progress.records.append(record)
        if record["event"] == "epoch":
            accuracies = f"clean {record['selection_accuracy']:.1%}, PGD {record['selection_pgd_accuracy']:.1%}"
            best = f"best epoch {record['best_epoch']}"
            self._say(f"epoch {record['epoch']} of {self._progress.epochs}", f"{accuracies} ({best})")

    def tick(self) -> None:
        """Say where the run stands, if nothing was said for a minute."""
        if time.monotonic() - self._said_at >= _HEARTBEAT_S:
            self._say(f"step {self._progress.position():,} of {self._progress.total_steps:,}")

    def _say(self, what: str, *facts: str) -> None:
        step = latest(self._progress.records, "step")
        losses = [] if step is None else [_sum(step, loss, terms) for loss, terms in loss_terms(step).items()]
        say(f"{what}: " + ", ".join(filter(None, [*facts, self._progress.pace, self._progress.time_left, *losses])))
        self._said_at = time.monotonic()


class LiveDisplay:
    """For a terminal: a bar with the time left, the loss terms, and the last epochs, redrawn in place."""

    def __init__(self, progress: RunProgress, console: Console) -> None:
        """Show `progress` on `console`."""
        from rich.live import Live

        self._progress, self._drawn_at = progress, 0.0
        # Not `get_renderable`: that would be asked again at the end, when the last picture is what should stay.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")

    def __enter__(self) -> LiveDisplay:
        """Hide the cursor and draw."""
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the terminal."""
        self._draw()
        self._live.stop()

    def record(self, record: Record) -> None:
        """Show a record."""
        self._progress.records.append(record)
        self._draw()

    def tick(self) -> None:
        """Redraw, a few times a second at most."""
        if time.monotonic() - self._drawn_at >= _REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        self._live.update(_picture(self._progress), refresh=True)
        self._drawn_at = time.monotonic()


def training_display(progress: RunProgress) -> PlainLines | LiveDisplay:
    """Return the display that suits stderr: live on a terminal that can move its cursor, else lines."""
    if sys.stderr is None or not sys.stderr.isatty():
        return PlainLines(progress)
    from rich.console import Console

    console = Console(file=cast(IO[str], _Terminal(sys.stderr)), highlight=False)
    return PlainLines(progress) if console.is_dumb_terminal else LiveDisplay(progress, console)


def _picture(progress: RunProgress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    step, total = progress.position(), progress.total_steps
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=total, completed=step, width=30)
    state = "measuring the epoch" if progress.measuring and step < total else progress.time_left
    head.add_row(f"step {step:,} of {total:,}", bar, f"{step / total:.0%}", progress.pace, state)
    logged = latest(progress.records, "step")
    losses = [] if logged is None else [_sum(logged, loss, terms) for loss, terms in loss_terms(logged).items()]
    return Group(head, *map(Text, losses), *_epochs(progress.records))


def _epochs(records: Sequence[Record]) -> list[Table]:
    """Return a table of the last epochs with the losses at their end, if there is an epoch."""
    from rich import box
    from rich.table import Table

    ended = [index for index, record in enumerate(records) if record["event"] == "epoch"]
    if not ended:
        return []
    best = records[ended[-1]]["best_epoch"]
    losses = list(loss_terms(latest(records, "step") or {}))
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("epoch", *map(in_words, losses), "clean accuracy", "PGD accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for index in ended[-_EPOCHS_SHOWN:]:
        epoch, step = records[index], latest(records[:index], "step") or {}
        values = [f"{step[loss]:.4g}" if loss in step else "-" for loss in losses]
        accuracies = [f"{epoch[name]:.1%}" for name in ("selection_accuracy", "selection_pgd_accuracy")]
        chosen = epoch["epoch"] == best
        table.add_row(
            str(epoch["epoch"]), *values, *accuracies, "best" if chosen else "", style="bold green" if chosen else ""
        )
    return [table]


def _sum(step: Record, loss: str, terms: Sequence[str]) -> str:
    """Return a loss and the terms it is the sum of, as one line."""
    value = f"{in_words(loss)} {step[loss]:.4g}"
    parts = " + ".join(f"{in_words(term, loss)} {step[term]:.3g}" for term in terms)
    return f"{value} = {parts}" if parts else value


class _Terminal(io.TextIOBase):
    """A terminal that may be closed while the training goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return len(text)

    def flush(self) -> None:
        """Nothing is left to write."""

"""A matplotlib figure that is written in one step, or refused with a remedy (extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flss_runtime.atomic import atomic_write
from flss_runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@contextmanager
def drawn(target: Path, size: tuple[float, float], *, overwrite: bool = True) -> Iterator[Figure]:
    """Yield an empty figure and write what the block drew on it.

    Args:
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        size: width and height in inches.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    kind = check_picture(target)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_write(target, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=kind, dpi=140)


def check_picture(target: Path) -> str:
    """Refuse a file that could not be drawn: to be asked before what is drawn takes minutes.

    Returns:
        The format that its suffix names.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
    """
    kind = target.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"cannot draw a {target.suffix or 'file without suffix'}", f"end it in .{', .'.join(FORMATS)}")
    require_matplotlib()
    return kind


def require_matplotlib() -> None:
    """Refuse to draw where nothing could: to be asked before what is drawn takes minutes.

    Raises:
        UsageError: matplotlib is absent.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"matplotlib cannot be imported ({error})", "pip install 'flss-edge[plot]'") from error

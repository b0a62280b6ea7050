"""The program: `flss-edge`, and `python -m flss_edge` for `torchrun -m flss_edge`."""

from __future__ import annotations

_INTERRUPTED = 130


def main() -> int:
    """Run one command and return its exit code, also where Ctrl-C comes before there is a command line to answer it."""
    try:
        from flss_edge.cli import main as run

        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m flss_edge`, for `torchrun -m flss_edge`."""

from __future__ import annotations

from flss_edge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

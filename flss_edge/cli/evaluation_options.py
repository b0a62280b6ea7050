"""What `flss-edge evaluate` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QUICK_IMAGES = 200
SWEEPS = ("epsilon", "noise-scale", "num-samples")


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of the command, read but not yet checked against any artefact; see their help texts."""

    data: Path | None
    split: str
    limit: int | None
    suites: tuple[str, ...]
    epsilon: float
    settings: tuple[str, ...]
    against: tuple[str, ...]
    gate: Path | None
    sources: tuple[Path, ...]
    eot: int
    calibration: Path | None
    budget: float
    sweep: str | None
    corruptions: bool
    out_of_distribution: Path | None
    checks: bool
    replay: Path | None
    save_adversarial: Path | None
    folder: Path | None
    num_samples: int | None
    noise_scale: float
    batch_size: int
    device: str
    seed: int
    engine: str
    sampling: str
    threads: int | None
    strict: bool
    overwrite: bool

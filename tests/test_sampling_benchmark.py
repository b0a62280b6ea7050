"""The comparison of the samplings: what it refuses, and that it can tell two distributions apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import load

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("matplotlib", reason="needs the extra plot")
sampling = load("sampling")


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_noise_scale_that_compares_nothing_is_refused(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", "absent.pt", "--data", "absent.npz", "-o", str(tmp_path / "a.json")]
    assert sampling.main([*options, f"--noise-scale={scale}"]) == 2
    assert "--noise-scale" in capsys.readouterr().err


def alike(p_value: float, deviations: Any) -> dict[str, Any]:
    return {"least_p_times_images": p_value, "pairs": {"logit": sampling._pairs(deviations)}}


def test_samplings_that_differ_are_flagged() -> None:
    normal = np.random.default_rng(0).standard_normal(2000)
    assert sampling.unlike(alike(0.3, normal)) == []
    (found,) = sampling.unlike(alike(1e-4, normal))
    assert found["detail"].startswith("votes")
    (found,) = sampling.unlike(alike(0.3, 2 * normal))
    assert found["detail"].startswith("pairs of logit sampling")

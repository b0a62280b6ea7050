"""A published checkpoint in half precision is the same network, rounded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flss_edge.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models/cifar10-w8.pt"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("halve", ROOT / "models/halve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_half_as_large_and_the_same_but_for_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "half.pt"
    assert script().main([str(SHIPPED), "-o", str(target)]) == 0
    assert target.stat().st_size < 0.65 * SHIPPED.stat().st_size
    whole, half = load_checkpoint(SHIPPED), load_checkpoint(target)
    assert (half.class_names, half.training, half.model.config) == (
        whole.class_names,
        whole.training,
        whole.model.config,
    )
    rounded = 0
    for name, tensor in whole.model.state_dict().items():
        found = half.model.state_dict()[name]
        assert found.dtype == tensor.dtype, "it computes in float32 again"
        torch.testing.assert_close(found, tensor, rtol=2**-11, atol=2**-24)
        rounded += not torch.equal(found, tensor)
    assert rounded > 20
    change = float(capsys.readouterr().out.split()[-1])
    assert 0 < change < 0.05
    assert script().main([str(SHIPPED), "-o", str(target)]) == 7, "nothing is replaced"


def test_a_weight_out_of_range_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(SHIPPED)
    with torch.no_grad():
        next(checkpoint.model.parameters()).view(-1)[0] = 70_000
    save_checkpoint(tmp_path / "large.pt", checkpoint)
    assert script().main([str(tmp_path / "large.pt"), "-o", str(tmp_path / "half.pt")]) != 0
    assert "exceeds 65504" in capsys.readouterr().err and not (tmp_path / "half.pt").exists()

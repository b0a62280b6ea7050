"""The script that compares engines and precisions, started as a user starts it on a tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/engines.py"
PNG = b"\x89PNG\r\n\x1a\n"


def test_every_engine_meets_every_precision(calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "engines.json"
    options = ["--data", str(labelled_pictures), "--precisions", "fp32", "--blocks", "2", "--frames", "2"]
    command = [sys.executable, str(SCRIPT), str(calibrated_bundle), *options, "-o", str(output)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert refused.returncode in (0, 5), refused.stderr
    result = json.loads(output.read_text())
    assert (refused.returncode == 5) == bool(result["validity"]["flags"]), "a flagged result is not valid"
    assert result["command"].startswith("python benchmarks/engines.py tiny.bundle --data pictures"), "can be repeated"
    ort, openvino = result["results"]["rows"]
    assert (ort["engine"], openvino["engine"]) == ("ort", "openvino")
    assert ort["equivalence"]["data"] is None, "it judges, so it is not compared with itself"
    assert openvino["equivalence"]["data"]["images"] == 60 and openvino["equivalence"]["facts"]["device"] == "CPU"
    for row in (ort, openvino):
        assert len(row["block_ms"]) == 2 and min(row["block_ms"]) > 0
    assert openvino["times_ort_fp32"]["ratio"] > 0 and "times_ort_fp32" not in ort
    assert output.with_suffix(".png").read_bytes()[:8] == PNG
    assert str(tmp_path) not in output.read_text() and "openvino fp32:" in refused.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert again.returncode == 7 and "--overwrite" in again.stderr

"""The benchmark of the node: it runs, and what it says about known latencies is right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros2")

from ament_index_python.packages import get_package_prefix

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmark_scripts import load, start


def test_costs_are_differences_of_the_medians() -> None:
    ros2 = load("ros2")
    draw = np.random.default_rng(0)
    blocks = {
        name: [(mean + draw.normal(0, 0.05, 200)).tolist() for _ in range(10)]
        for name, mean in (("bare", 10.0), ("stream", 10.2), ("node", 11.5))
    }
    stages = np.array([[11.5, 0.1, 9.9, 10.2]] * 50)
    found = ros2.describe(blocks, stages)
    costs = {(each["arm"], each["baseline"]): each["difference_ms"] for each in found["costs"]}
    assert costs == pytest.approx({("stream", "bare"): 0.2, ("node", "bare"): 1.5, ("node", "stream"): 1.3}, abs=0.02)
    assert found["node_median_ms"]["messages"] == pytest.approx(1.3)
    assert found["arms"]["node"]["latency_ms"]["p50"] == pytest.approx(11.5, abs=0.02)


def test_a_first_look(real_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 19))
    options = "--quick", "--frames", 5, "--frame", "64x48", "--allow-invalid", "-o", tmp_path / "ros2.json"
    done = start("ros2", real_bundle, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ros2.json").read_text("utf-8"))
    assert result["command"].startswith(
        "python benchmarks/ros2.py c10.bundle --engine ort --threads 1 --hz 30 --frame 64x48"
    )
    assert [found["n"] for found in result["results"]["arms"].values()] == [15, 15, 15]
    assert result["config"]["ros"] == os.environ.get("ROS_DISTRO"), "what nobody says is not known"
    assert any(each["name"] == "quick_profile" for each in result["validity"]["flags"])
    assert (
        0
        < result["results"]["node_median_ms"]["in_stream"]
        < result["results"]["node_median_ms"]["publish_to_decision"]
    )


def test_with_the_shipped_profile_no_large_image_is_lost(
    real_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark stops at the first one; without the profile that is one of the first few."""
    share = Path(get_package_prefix("flss_edge_ros")) / "share" / "flss_edge_ros"
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(share / "config" / "fast_dds_images.xml"))
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 19))
    options = "--quick", "--frames", 20, "--frame", "1280x720", "--allow-invalid", "-o", tmp_path / "ros2.json"
    done = start("ros2", real_bundle, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ros2.json").read_text("utf-8"))["config"]["dds_profile"] == "fast_dds_images.xml"

"""Tests of the ROS 2 node; those that need ROS say so where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.conftest import TinyModel, make_model, tiny
from tests.runtime.moody import write_moody

if TYPE_CHECKING:
    from .robot import NodeProcess, Robot

DEFAULTS = {"threads": 1, "deadline_ms": 2000.0, "image_reliability": "reliable"}
__all__ = ["make_model", "tiny"]  # fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Let what ROS's own packages import be deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:module 'sre_.*' is deprecated:DeprecationWarning")


@pytest.fixture(scope="session")
def moody(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose images say by their first pixel how long the engine works, and whether it fails."""
    return write_moody(tmp_path_factory.mktemp("moody") / "moody.bundle", tiny).path


@pytest.fixture(scope="session")
def real_bundle() -> Path:
    """The shipped checkpoint's bundle, calibrated: exporting it takes torch, which is not in ROS's environment."""
    path = os.environ.get("FLSS_ROS2_BUNDLE")
    if path is None:
        pytest.skip("no bundle: make test-ros2 exports one and names it in FLSS_ROS2_BUNDLE")
    return Path(path)


@pytest.fixture
def robot() -> Iterator[Robot]:
    from .robot import Robot

    robot = Robot()
    yield robot
    robot.close()


@pytest.fixture
def run_node(robot: Robot, tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Start nodes beside the robot; they end with the test, by SIGTERM and without a traceback.

    Where the test does not set its own, the deadline is one that a busy machine keeps, too, and no image is lost.
    """
    from contextlib import ExitStack

    from .robot import running

    with ExitStack() as ended:

        def start(**parameters: Any) -> NodeProcess:
            log = tmp_path / "node.log"
            return ended.enter_context(running(robot, log, **{**DEFAULTS, **parameters}))

        yield start

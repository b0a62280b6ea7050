"""The libraries that engines run on: imported on demand, and kept from sending usage data."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from flss_runtime.errors import EngineUnavailable

# Engine -> (library it needs, extra that installs it). TensorRT comes under several names: engines/trt.py knows them.
_LIBRARIES = {"ort": ("onnxruntime", "cpu"), "openvino": ("openvino", "openvino")}


def import_library(engine: str) -> ModuleType:
    """Import what an engine runs on.

    Args:
        engine: One of `ENGINE_NAMES`.

    Raises:
        EngineUnavailable: It is not installed, or a shared library it needs is not.
    """
    if engine == "trt":
        from flss_runtime.engines.trt import import_tensorrt

        return import_tensorrt()
    module, extra = _LIBRARIES[engine]
    # From 1.29 on, ONNX Runtime's own builds upload usage data unless this is set before the import. A robot's do not,
    # unless whoever runs it sets the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with _no_openvino_telemetry():
            return importlib.import_module(module)
    # OSError: the package is there, but a shared library it needs is not.
    except (ImportError, OSError) as error:
        raise EngineUnavailable(
            f"engine {engine!r} needs {module}, which cannot be imported ({error})",
            f"pip install 'flss-edge[{extra}]'",
        ) from error


def engine_status() -> dict[str, str]:
    """Say for each engine whether its library can be used here.

    Returns:
        Engine name -> "ort 1.31.0" (name and version of the library), or "absent: " and how to install it.
    """
    status = {}
    for engine in (*_LIBRARIES, "trt"):
        try:
            status[engine] = f"{engine} {version_of(import_library(engine))}"
        except EngineUnavailable as error:
            status[engine] = f"absent: {error.problem}; {error.fix}"
    return status


def version_of(library: ModuleType) -> str:
    """Return a library's release, "2026.4.1", without the build that OpenVINO puts behind it."""
    return str(library.__version__).split("-", 1)[0]


@contextmanager
def _no_openvino_telemetry() -> Iterator[None]:
    """Import OpenVINO without its telemetry, which reports every import to an analytics service and has no off switch.

    It takes an inert stand-in where the package that does this is not installed; so it is made to look absent, for as
    long as the import lasts.
    """
    name = "openvino_telemetry"
    if name in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # documented: importing it raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[name]

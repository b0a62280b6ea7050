"""Every name of TensorRT's interface that the code uses exists in every version that it is written for.

Most of it runs on a GPU only, and a name that a version does not have would show on the robot. TensorRT-RTX's bindings
import without a GPU and are asked; those of `tensorrt` do not, so their names are looked up among the strings of the
compiled module, in wheels that `make test` fetches.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import logging
import os
import re
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flss_runtime

PACKAGE = Path(flss_runtime.__file__).parent
SOURCES = sorted(PACKAGE.glob("engines/trt*.py"))
WHEELS = Path(os.environ.get("FLSS_TENSORRT_WHEELS", PACKAGE.parents[1] / "build/tensorrt-bindings"))
# Behind `is_rtx`, or asked for with getattr.
RTX_ONLY = {
    "ComputeCapability",
    "CURRENT",
    "DynamicShapesKernelSpecializationStrategy",
    "EAGER",
    "REQUIRE_USER_ALLOCATION",
    "create_runtime_cache",
    "create_runtime_config",
    "deserialize",  # of that cache
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
    "num_compute_capabilities",
    "set_compute_capability",
    "set_execution_context_allocation_strategy",
    "set_runtime_cache",
}
# Names in the sources -> class of TensorRT that they hold. What builds is run by other tests; this part needs a GPU.
HOLDS = {
    "trt_plan.py": {
        "self.engine": "ICudaEngine",
        "self._runtime": "Runtime",
        "self._context": "IExecutionContext",
        "self._cache": "IRuntimeCache",
        "config": "IRuntimeConfig",
    }
}
_OTHERS: tuple[Any, ...] = (
    *(str, bytes, dict, list, set, tuple, int, float, slice, deque, Path, logging.Logger, ModuleType, BaseException),
    *(np, npt, np.ndarray, re, re.Match, importlib, logging, builtins, object),
    *(
        importlib.import_module("time"),
        importlib.import_module("signal"),
        importlib.import_module("threading"),
        ExitStack,
    ),
)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for source in SOURCES:
        yield source.name, ast.parse(source.read_text())


def own_names() -> set[str]:
    """Return all that this package's classes and modules define, which is not TensorRT's."""
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign):
                names.add(ast.unparse(node.target).removeprefix("self."))
    return names


def used_names() -> set[str]:
    """Return the attributes in the sources that are neither ours nor Python's nor NumPy's: TensorRT's."""
    attributes = {node.attr for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asked = {
        str(node.args[1].value)
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
    }
    others = {name for thing in _OTHERS for name in dir(thing)}
    return (attributes - own_names() - others) | asked


@pytest.fixture(scope="module")
def bindings() -> ModuleType:
    from flss_runtime.engines.trt import import_tensorrt
    from flss_runtime.errors import EngineUnavailable

    try:
        return import_tensorrt()
    except EngineUnavailable as error:
        pytest.skip(f"neither TensorRT nor TensorRT-RTX is installed here: {error.fix}")


def names_of(library: ModuleType) -> set[str]:
    """Return everything that the module and its classes offer."""
    names = set(dir(library))
    for _, thing in inspect.getmembers(library, inspect.isclass):
        names |= set(dir(thing))
        for _, inner in inspect.getmembers(thing, inspect.isclass):  # ILogger.Severity
            names |= set(dir(inner))
    return names


def test_the_names_are_found_at_all() -> None:
    used = used_names()
    some = {
        "build_serialized_network",
        "set_tensor_address",
        "execute_async_v3",
        "STRONGLY_TYPED",
        "deserialize_cuda_engine",
    }
    assert some <= used and len(used) > 40
    assert RTX_ONLY <= used, "a name that is not used any more"


def test_the_installed_bindings_have_every_name(bindings: ModuleType) -> None:
    missing = used_names() - names_of(bindings)
    assert missing == set(), bindings.__name__


@pytest.mark.parametrize(("source", "holder"), [(s, h) for s, holders in HOLDS.items() for h in holders])
def test_objects_that_need_a_gpu_have_their_names(source: str, holder: str, bindings: ModuleType) -> None:
    owner = getattr(bindings, HOLDS[source][holder])
    tree = dict(trees())[source]
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == holder
    }
    assert used, f"nothing is called {holder} any more"
    assert {name for name in used if not hasattr(owner, name)} == set()


@pytest.mark.parametrize("version", ["10.3", "10.16", "11"])
def test_tensorrt_has_every_name(version: str) -> None:
    found = sorted(WHEELS.glob(f"tensorrt_cu1?_bindings-{version}.*.whl"))
    if not found:
        pytest.skip(f"no bindings of TensorRT {version} in {WHEELS.name}: run `make tensorrt-bindings`")
    with zipfile.ZipFile(found[-1]) as wheel:
        compiled = wheel.read("tensorrt_bindings/tensorrt.so")
        written = set(re.findall(r"^def (\w+)", wheel.read("tensorrt_bindings/__init__.py").decode(), re.MULTILINE))
    needed = used_names() - RTX_ONLY - written
    # A linker may store a string as the tail of a longer one, so only its end is looked for.
    assert {name for name in needed if name.encode() + b"\0" not in compiled} == set()

"""`gpu_checks.py` under pytest (make test-gpu), over a bundle exported here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.bundle import load_bundle
from flss_runtime.engine_cache import CACHE_VARIABLE
from flss_runtime.engines.cuda import find_device
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.errors import EngineUnavailable

pytestmark = pytest.mark.gpu


def _load_checks() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_checks", Path(__file__).with_name("gpu_checks.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


checks = _load_checks()


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        find_device()
        import_tensorrt()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    tiny_bundle: Path = request.getfixturevalue("tiny_bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield checks.Case(load_bundle(tiny_bundle), "fp32")


@pytest.mark.parametrize("name", checks.CHECKS)
def test_on_the_gpu(case: Any, name: str) -> None:
    print(checks.CHECKS[name](case))

"""Files that are no graph, or half of one: one error each, and nothing of the libraries' own on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flss_runtime.engines import open_engine
from flss_runtime.errors import BundleError

from .test_conformance import ABSENT

if TYPE_CHECKING:
    from .conftest import TinyModel


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"not a graph", b"\xff" * 100, b"\x08\x08\x3a\x05hello", None],
    ids=["empty", "word", "words", "bytes", "no graph inside", "half"],
)
def test_what_is_no_graph_is_one_error_and_no_talk(
    tiny: TinyModel, tmp_path: Path, engine: str, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if engine in ABSENT:
        pytest.skip(f"{engine} is absent: {ABSENT[engine]}")
    path = tmp_path / "bad.onnx"
    path.write_bytes(tiny.encoder.read_bytes()[:500] if content is None else content)
    with pytest.raises(BundleError, match=r"cannot load .*bad\.onnx") as caught:
        open_engine(path, engine)
    assert "export the bundle again" in caught.value.fix
    assert capfd.readouterr() == ("", "")

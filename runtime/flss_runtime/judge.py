"""The bundle's float32 graphs on ONNX Runtime's CPU provider, which judge where no votes were stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flss_runtime.bundle import Bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.comparison import Comparison
from flss_runtime.errors import CheckFailed
from flss_runtime.opening import open_classifier

JUDGE = "fp32 graphs on ort"
_ENGINE, _PRECISION = "ort", "fp32"
_RUNS = "ort", "CPUExecutionProvider"


def is_judge(facts: Mapping[str, Any], precision: str) -> bool:
    """Tell by what really runs, which a device that fell back to the CPU does not say in its name."""
    return (facts["engine"].partition(":")[0], facts["device"], precision) == (*_RUNS, _PRECISION)


def open_judge(bundle: Bundle, options: Mapping[str, Any]) -> SmoothedClassifier:
    """Open encoder and head.

    Args:
        bundle: Whose graphs they are.
        options: Of `open_classifier`: "policy", "threads" and "strict".

    Raises:
        EngineUnavailable: ONNX Runtime is not installed.
    """
    return open_classifier(bundle, _ENGINE, precision=_PRECISION, fused=False, **options)


def check_judge(comparisons: Iterable[Comparison | None]) -> None:
    """Let nobody judge who does not decide as the checkpoint.

    Args:
        comparisons: With the stored tensors and votes.

    Raises:
        CheckFailed: One of them has a failure.
    """
    failures = [failure for each in comparisons if each is not None for failure in each.failures]
    if failures:
        raise CheckFailed(
            f"the {JUDGE} cannot judge, because they do not decide as the checkpoint: {'; '.join(failures)}",
            "export the bundle again, or install the onnxruntime it was exported with",
        )

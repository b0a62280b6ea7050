"""Has what the camera sees drifted away from what the calibration saw? A sequential test that needs no labels.

>>> from flss_runtime.drift import DriftMonitor, drift_reference
>>> monitor = DriftMonitor(drift_reference(bundle))  # doctest: +SKIP
>>> monitor.update(decision)  # doctest: +SKIP
>>> monitor.state  # doctest: +SKIP
'ok'
"""

from __future__ import annotations

from flss_runtime.drift.monitor import DRIFTING, INSUFFICIENT, OK, DriftMonitor
from flss_runtime.drift.reference import DriftReference, drift_reference

__all__ = ["DRIFTING", "INSUFFICIENT", "OK", "DriftMonitor", "DriftReference", "drift_reference"]

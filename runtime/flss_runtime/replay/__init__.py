"""A recorded drive through the classifier: bags and folders of pictures in, decisions out, with no ROS installed."""

from __future__ import annotations

from flss_runtime.replay.bags import BagFrame, FrameSource, open_frames
from flss_runtime.replay.run import replay
from flss_runtime.replay.summary import ReplaySummary

__all__ = ["BagFrame", "FrameSource", "ReplaySummary", "open_frames", "replay"]

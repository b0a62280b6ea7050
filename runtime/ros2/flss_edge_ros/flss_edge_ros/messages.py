"""Results as ROS messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flss_edge_msgs.msg import Decision

from flss_runtime.decision import SmoothingPolicy
from flss_runtime.replay.decision_message import decision_values
from flss_runtime.stream import Origin, StreamResult

try:
    from vision_msgs.msg import Classification, LabelInfo, ObjectHypothesis, VisionClass
except ImportError:  # the package is not installed here: only our own message is published
    Classification = LabelInfo = ObjectHypothesis = VisionClass = None


class ResultMessages:
    """Fills one message of each type again and again: publishing copies it, and results come one at a time.

    Args:
        class_names: Names of the K classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._decision = Decision()
        self._classification = None if Classification is None else Classification()
        self._hypotheses = [] if ObjectHypothesis is None else [ObjectHypothesis()]

    def decision(self, result: StreamResult) -> Decision:
        """Return the result as our own message, valid until the next call."""
        message = self._decision
        message.header = result.source
        for field, value in decision_values(result, self._class_names).items():
            setattr(message, field, value)
        return message

    def classification(self, result: StreamResult) -> Any:
        """Return the result as vision_msgs/Classification, valid until the next call.

        A rejected image has no results: whoever knows nothing of rejection sees no class, not a wrong one.
        """
        message, label = self._classification, result.decision.label
        message.header = result.source
        if label is None:
            message.results = []
            return message
        self._hypotheses[0].class_id = str(label)  # as in the class_map of LabelInfo, which has the name
        self._hypotheses[0].score = result.decision.vote_share
        message.results = self._hypotheses
        return message


def labels_json(class_names: Sequence[str], policy: SmoothingPolicy, origin: Origin) -> str:
    """Return what a reader of decisions has to know once, as JSON."""
    values = {
        "class_names": list(class_names),
        "num_samples": policy.num_samples,
        "min_votes": policy.min_votes,
        "noise_scale": policy.noise_scale,
        "bundle": origin.bundle,
        "bundle_sha256": origin.bundle_sha256,
        "engine": origin.engine,
        "precision": origin.precision,
        "sampling": origin.sampling,
    }
    return json.dumps(values, ensure_ascii=False)


def label_info(class_names: Sequence[str], policy: SmoothingPolicy, stamp: Any) -> Any:
    """Return the classes as vision_msgs/LabelInfo.

    Args:
        class_names: Names of the K classes.
        policy: Its threshold is given as a share of the votes.
        stamp: The time for the header, builtin_interfaces/Time.
    """
    info = LabelInfo(threshold=policy.min_votes / policy.num_samples)
    info.header.stamp = stamp
    info.class_map = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(class_names)]
    return info

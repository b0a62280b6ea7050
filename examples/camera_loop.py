"""A robot's camera loop: python examples/camera_loop.py m.bundle 0 (a camera for OpenCV, or a folder of pictures)."""

import sys
from collections.abc import Iterator

from flss_runtime.images import ByteArray
from flss_runtime.replay import open_frames
from flss_runtime.stream import StreamResult, TemporalVote, open_stream


def camera(source: str) -> Iterator[ByteArray]:
    """Yield frames, RGB."""
    if not source.isdecimal():
        with open_frames(source) as frames:
            yield from (frame.image for frame in frames if frame.image is not None)
        return
    import cv2

    capture = cv2.VideoCapture(int(source))
    if not capture.isOpened():
        sys.exit(f"camera {source} cannot be opened")
    while (read := capture.read())[0]:
        yield read[1][..., ::-1]  # OpenCV's frames are BGR


def publish(result: StreamResult) -> None:
    """Hand every result on, once and in time, whatever became of the frame."""
    print(result.frame, result.decision.status, f"{result.decision.vote_share:.2f}", result.decision.reason)


bundle, source = sys.argv[1:]
with open_stream(bundle, publish, deadline_s=0.1, steady=TemporalVote(5, 4, max_age_s=0.5)) as stream:
    for frame in camera(source):
        steady = stream.classify(frame).steady  # by the deadline; None: no class that 4 of the last 5 frames agree on
        print("  stop" if steady is None else f"  drive: {stream.class_names[steady]}")
    print("  stop")  # the camera is gone

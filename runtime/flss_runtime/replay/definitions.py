"""Definitions of the messages that a replay reads and writes, as a bag keeps them, so that it needs no ROS."""

from __future__ import annotations

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
DECISION = "flss_edge_msgs/msg/Decision"

# Byte for byte runtime/ros2/flss_edge_msgs/msg/Decision.msg; a test compares them.
DECISION_DEFINITION = """\
# What the classifier said about one image. A rejected image has no label: accepted is false and label is empty.
uint8 ACCEPTED=0
uint8 LOW_VOTE=1
uint8 DEADLINE=2
uint8 INVALID_INPUT=3
uint8 SUPERSEDED=4
uint8 FAULT=5
std_msgs/Header header      # of the image
uint8 status
bool accepted
string label                # class name, empty unless accepted
uint32 label_index          # meaningful only where accepted
string top_label            # most voted class even when rejected, empty where nothing voted
uint32 votes
uint32 num_samples
float32 vote_share
bool gated
string steady_label         # temporal vote, empty where there is none
string reason
uint64 frame
bool has_counter
uint64 counter              # of the noise, with the key it replays the votes
string engine
string precision
string sampling
string bundle_sha256
float32 wait_ms
float32 classify_ms
float32 total_ms
"""
_IMAGE_DEFINITION = """\
std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
"""
_COMPRESSED_IMAGE_DEFINITION = """\
std_msgs/Header header
string format
uint8[] data
"""
_HEADER = f"""\
{"=" * 80}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{"=" * 80}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""

# Type -> its definition followed by those of the types it uses (MCAP's schema encoding "ros2msg").
SCHEMAS = {
    DECISION: DECISION_DEFINITION + _HEADER,
    IMAGE: _IMAGE_DEFINITION + _HEADER,
    COMPRESSED_IMAGE: _COMPRESSED_IMAGE_DEFINITION + _HEADER,
}


def fields_of(definition: str) -> list[tuple[str, str]]:
    """List the fields of a message as (type, name), constants left out."""
    lines = (line.partition("#")[0].split() for line in definition.splitlines())
    return [(words[0], words[1]) for words in lines if len(words) == 2 and "=" not in words[1]]

"""A recorded drive is decided frame by frame, the same way every time, and its decisions can be read by others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flss_runtime.bundle import load_bundle
from flss_runtime.decision import Decision, Status
from flss_runtime.images import fit_image
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.replay import FrameSource, ReplaySummary, open_frames, replay
from flss_runtime.replay.bag_writer import DECISION_TOPIC, decision_bag
from flss_runtime.replay.decision_message import STATUS_CODES, decision_values, encode_decision
from flss_runtime.replay.definitions import COMPRESSED_IMAGE, DECISION, DECISION_DEFINITION, IMAGE, fields_of
from flss_runtime.replay.latency_histogram import LatencyHistogram
from flss_runtime.replay.timeline import Timeline
from flss_runtime.stream import Origin, StreamResult, Timing
from flss_runtime.stream.temporal import TemporalVote

from .bundles import NUM_SAMPLES, entry, write_tiny
from .conftest import TinyModel, save_encoder
from .drives import (
    TOPIC,
    cdr,
    drive_frames,
    image_fields,
    log_time_ns,
    stamp_ns,
    write_mcap,
    write_messages,
    write_rosbag,
)

FRAMES = drive_frames(20)
ORIGIN = Origin("ort", "fp32", "latent", "tiny.bundle", "ab" * 32, 2.0)


def decide(bundle: Path, drive: Path, seed: int = 0, **options: Any) -> list[StreamResult]:
    noise = SeededNoise(seed)
    with open_classifier(bundle, noise=noise) as classifier, open_frames(drive) as frames:
        return [result for _, result in replay(frames, classifier, ORIGIN, **options)]


def votes(results: list[StreamResult]) -> list[tuple[Any, ...]]:
    return [(r.decision.label, r.decision.top_label, r.decision.votes, r.decision.counter) for r in results]


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_mcap(tmp_path / "drive.mcap", FRAMES)


def test_the_same_drive_and_seed_give_the_same_votes(pristine: Path, drive: Path, tmp_path: Path) -> None:
    once = votes(decide(pristine, drive))
    assert votes(decide(pristine, drive)) == once
    assert votes(decide(pristine, write_rosbag(tmp_path / "same", FRAMES))) == once  # whatever the file format
    assert votes(decide(pristine, drive, seed=1)) != once


def test_frames_are_decided_as_the_classifier_decides_them(pristine: Path, drive: Path) -> None:
    results = decide(pristine, drive)
    with open_classifier(pristine, noise=SeededNoise(0)) as classifier:
        expected = [classifier.classify(fit_image(frame, classifier.input))[0] for frame in FRAMES]
    assert [result.decision for result in results] == expected
    assert len({decision.status for decision in expected}) == 2  # accepted and rejected ones
    for number, result in enumerate(results):
        assert (result.frame, result.stamp, result.num_samples) == (number, stamp_ns(number), NUM_SAMPLES)
        assert result.origin is ORIGIN and result.steady is None
        stages = result.timing.stages_ms()
        assert stages["wait"] == 0 and all(stages[name] >= 0 for name in ("fit", "classify", "total"))  # type: ignore[operator]


def test_frames_that_cannot_be_read_take_no_noise(pristine: Path, tmp_path: Path) -> None:
    good = [cdr(IMAGE, image_fields(frame, number)) for number, frame in enumerate(FRAMES[:3])]
    whole = votes(decide(pristine, write_messages(tmp_path / "whole.mcap", good)))
    results = decide(pristine, write_messages(tmp_path / "some.mcap", [good[0], b"", good[1], good[1][:90], good[2]]))
    broken = [results.pop(3), results.pop(1)]
    assert votes(results) == whole
    for result in broken:
        assert result.decision.status is Status.INVALID_INPUT and result.decision.reason
        assert result.num_samples == 0 and result.timing.stages_ms()["classify"] is None


def test_a_frame_that_the_engine_fails_on_is_a_fault_and_the_next_is_tried(tiny: TinyModel, tmp_path: Path) -> None:
    spec = tiny.spec
    bright = np.full((3 * spec.height * spec.width, tiny.latent_dim), 3e37, np.float32)  # overflows on white
    save_encoder(tmp_path / "encoder.onnx", spec, bright, np.zeros_like(bright))
    path = tmp_path / "tiny.bundle"
    write_tiny(path, tiny, policy={"calibrations": [entry()]}, files={"encoder.onnx": tmp_path / "encoder.onnx"})
    black, white = np.zeros_like(FRAMES[0]), np.full_like(FRAMES[0], 255)
    results = decide(path, write_mcap(tmp_path / "drive.mcap", np.stack([black, white, black])))
    assert [result.decision.status for result in results][1] is Status.FAULT
    assert "not finite" in results[1].decision.reason
    assert results[0].decision.top_label is not None and results[2].decision.top_label is not None


def test_a_temporal_vote_is_taken_over_the_frames(tiny: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "tiny.bundle"
    write_tiny(path, tiny, policy={"calibrations": [entry(min_votes=12)]})
    same = write_mcap(tmp_path / "same.mcap", np.stack([FRAMES[0]] * 12))
    results = decide(path, same, steady=TemporalVote(3, 2))
    assert results[0].steady is None  # one frame is no two of three
    for result in results[2:]:
        labels = [each.decision.label for each in results[result.frame - 2 : result.frame + 1]]
        agreed = [label for label in set(labels) if label is not None and labels.count(label) >= 2]
        assert result.steady == (agreed[0] if agreed else None)
    assert any(result.steady is not None for result in results)


def test_the_message_is_that_of_the_interface_package() -> None:
    package = Path(__file__).parents[2] / "runtime/ros2/flss_edge_msgs/msg/Decision.msg"
    assert package.read_text() == DECISION_DEFINITION
    constants = [line.split()[1] for line in DECISION_DEFINITION.splitlines() if "=" in line.partition("#")[0]]
    assert constants == [f"{status.name}={code}" for status, code in STATUS_CODES.items()]


def write_decisions(bundle: Path, source: FrameSource, target: Path, **options: Any) -> list[StreamResult]:
    names = load_bundle(bundle).class_names
    results = []
    with (
        open_classifier(bundle, noise=SeededNoise(0)) as classifier,
        decision_bag(target, names, {"bundle": "tiny"}, **options) as bag,
    ):
        for frame, result in replay(source, classifier, ORIGIN):
            bag.add(frame, result)
            results.append(result)
    return results


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return math.isnan(found) if math.isnan(expected) else math.isclose(found, expected, rel_tol=1e-6)
    return bool(found == expected)


def assert_is_result(message: Any, result: StreamResult, names: tuple[str, ...]) -> None:
    number, decision = result.frame, result.decision
    stamp = message.header.stamp
    assert stamp.sec * 10**9 + stamp.nanosec == stamp_ns(number)
    assert message.header.frame_id == f"camera_{number}"
    for name, value in decision_values(result, names).items():
        assert same(getattr(message, name), value), name
    assert message.accepted is decision.accepted
    assert message.label == ("" if decision.label is None else names[decision.label])
    assert message.top_label == names[decision.top_label] and message.votes == decision.votes  # type: ignore[index]
    assert message.has_counter and message.counter == decision.counter
    assert message.status == ("accepted", "low_vote").index(decision.status.value)


def test_decisions_are_read_back_by_other_libraries(pristine: Path, drive: Path, tmp_path: Path) -> None:
    target, names = tmp_path / "decisions.mcap", load_bundle(pristine).class_names
    with open_frames(drive) as source:
        results = write_decisions(pristine, source, target)
    with target.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        decoded = list(reader.iter_decoded_messages())
        (metadata,) = reader.iter_metadata()
        assert reader.get_header().profile == "ros2" and metadata.metadata == {"bundle": "tiny"}
    assert len(decoded) == len(results) == len(FRAMES)
    for (schema, channel, message, ros), result in zip(decoded, results, strict=True):
        assert schema is not None and (schema.name, schema.encoding) == (DECISION, "ros2msg")
        assert (channel.topic, channel.message_encoding) == (DECISION_TOPIC, "cdr")
        assert message.log_time == message.publish_time == log_time_ns(result.frame)
        assert_is_result(ros, result, names)
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg(DECISION_DEFINITION, DECISION))
    with Reader(target) as bag:
        (connection,) = bag.connections
        assert (connection.topic, connection.msgtype, connection.msgcount) == (DECISION_TOPIC, DECISION, len(FRAMES))
        for (_, time_ns, data), result in zip(bag.messages(), results, strict=True):
            assert time_ns == log_time_ns(result.frame)
            assert_is_result(types.deserialize_cdr(data, DECISION), result, names)


def test_frames_without_an_answer_are_written_too(pristine: Path, tmp_path: Path) -> None:
    target = tmp_path / "decisions.mcap"
    with open_frames(write_messages(tmp_path / "drive.mcap", [b"no image", b""])) as source:
        write_decisions(pristine, source, target, images=source.topic)
    with target.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        messages = [ros for _, _, _, ros in reader.iter_decoded_messages(topics=[DECISION_TOPIC])]
    assert len(messages) == 2
    for message in messages:
        assert message.status == 3 and not message.accepted and not message.has_counter
        assert message.label == message.top_label == "" and "not as CDR" in message.reason
        assert math.isnan(message.classify_ms) and message.total_ms >= 0


@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED_IMAGE])
def test_images_are_copied_beside_the_decisions(kind: str, pristine: Path, tmp_path: Path) -> None:
    target = tmp_path / "decisions.mcap"
    drive = write_rosbag(tmp_path / "drive", FRAMES, kind=kind, compression="message")
    with open_frames(drive) as source:
        originals = [frame.message for frame in source]
    with open_frames(drive) as source:
        results = write_decisions(pristine, source, target, images=source.topic)
    with open_frames(target) as copied:
        assert copied.topic.name == TOPIC
        frames = list(copied)
    assert [frame.message for frame in frames] == originals
    assert [frame.log_time_ns for frame in frames] == [log_time_ns(number) for number in range(len(FRAMES))]
    assert votes(decide(pristine, target)) == votes(results)


def test_a_bag_of_decisions_appears_whole_or_not_at_all(pristine: Path, drive: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "decisions.mcap"
    target.parent.mkdir()
    with open_frames(drive) as source, pytest.raises(KeyboardInterrupt):
        with decision_bag(target, load_bundle(pristine).class_names, {}) as bag:
            with open_classifier(pristine, noise=SeededNoise(0)) as classifier:
                for frame, result in replay(source, classifier, ORIGIN):
                    bag.add(frame, result)
                    if result.frame == 9:
                        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []


def test_a_summary_counts_every_frame_once(pristine: Path, tmp_path: Path) -> None:
    good = [cdr(IMAGE, image_fields(frame, number)) for number, frame in enumerate(FRAMES)]
    summary = ReplaySummary(load_bundle(pristine).class_names)
    path = write_messages(tmp_path / "drive.mcap", [*good, b"", b""])
    results = []
    with open_classifier(pristine, noise=SeededNoise(0)) as classifier, open_frames(path) as frames:
        for frame, result in replay(frames, classifier, ORIGIN):
            summary.add(frame, result)
            results.append(result)
    fields = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    accepted = [r for r in results if r.decision.accepted]
    rejected = [r for r in results if r.decision.status is Status.LOW_VOTE]
    assert fields["frames"] == 22 and fields["statuses"]["invalid_input"] == 2
    assert (fields["statuses"]["accepted"], fields["statuses"]["low_vote"]) == (len(accepted), len(rejected))
    assert fields["reject_rate"] == summary.reject_rate == len(rejected) / 20
    assert fields["duration_s"] == pytest.approx((log_time_ns(21) - log_time_ns(0)) / 1e9)
    for row in fields["classes"]:
        mine = [r for r in results if r.decision.top_label == summary.class_names.index(row["class"])]
        assert row["frames"] == len(mine) and row["accepted"] == sum(r.decision.accepted for r in mine)
        assert row["vote_share"] == pytest.approx(np.mean([r.decision.vote_share for r in mine]))
    assert sum(row["frames"] for row in fields["classes"]) == 20
    assert fields["latency_ms"]["classify"]["n"] == 20 and fields["latency_ms"]["classify"]["p99"] is None
    assert [span["accepted"] for span in fields["timeline"]] == [int(r.decision.accepted) for r in results]


def voted(share: float, accepted: bool) -> Decision:
    status = Status.ACCEPTED if accepted else Status.LOW_VOTE
    return Decision(0 if accepted else None, 0, round(share * 100), share, status)


def test_a_timeline_keeps_its_sums_in_memory_that_does_not_grow() -> None:
    rng = np.random.default_rng(0)
    timeline, shares = Timeline(spans=16), rng.random(1000).round(2)
    for number, share in enumerate(shares):
        timeline.add(number * 10**9, voted(float(share), share > 0.5), latency_ms=float(number % 7))
    spans = timeline.to_json()
    assert timeline.frames_per_span == 64 and len(spans) == 16
    assert sum(span["accepted"] for span in spans) == int((shares > 0.5).sum())
    assert sum(span["accepted"] + span["rejected"] for span in spans) == 1000
    for place, span in enumerate(spans):
        part = shares[64 * place : 64 * (place + 1)]
        assert span["time_s"] == 64 * place and span["slowest_ms"] == min(6, len(part) - 1)
        assert span["lowest_share"] == part.min()
        assert span["rejected_share"] == pytest.approx(part[part <= 0.5].mean(), abs=1e-4)


def test_a_histogram_of_latencies_is_within_a_percent() -> None:
    latencies = np.random.default_rng(0).lognormal(1, 1, 5000)
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(float(latency))
    for percentile in (50, 90, 99, 100):
        exact = float(np.percentile(latencies, percentile, method="inverted_cdf"))
        found = histogram.percentile(percentile)
        assert found is not None and exact <= found <= exact * 1.0101
    assert histogram.to_json()["max"] == latencies.max()
    few = LatencyHistogram()
    for extreme in (0.0, 1e9, 5.0):
        few.add(extreme)
    assert few.percentile(99) is None and few.percentile(100) == 1e9 and few.to_json()["n"] == 3


def test_every_field_of_the_message_has_a_value() -> None:
    result = StreamResult(7, None, None, voted(0.5, False), None, 100, Timing(0), ORIGIN)
    values = decision_values(result, ["cat"])
    assert ["header", *values] == [name for _, name in fields_of(DECISION_DEFINITION)]
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg(DECISION_DEFINITION, DECISION))
    message = types.deserialize_cdr(encode_decision(values, -1, "käfer"), DECISION)
    stamp = message.header.stamp  # type: ignore[attr-defined]
    assert (stamp.sec, stamp.nanosec, message.header.frame_id) == (-1, 999_999_999, "käfer")  # type: ignore[attr-defined]

"""A drive past real test images, with noise, blur and attacks on the way, replayed as if a robot had recorded it.

usage: python examples/synthetic_drive.py c10.bundle --checkpoint c10.pt --data cifar10.npz -o build/drive

The images are those of a place that the robot knows: test images that it accepts and gets right as they are. Each is
seen for twelve frames, with the camera's own noise; then some through noise or blur that grows, with a patch that an
attacker stuck into the scene, or as PGD changed them. The frames become a bag (drive.mcap), the bag is replayed with
`flss_runtime.replay`, the decisions become another one (decisions.mcap, for Foxglove and the like), and timeline.png
and drive.json show when the robot would drive: while four of the last five frames agree on a class. Needs torch, for
the attacks.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mcap.writer import Writer
from PIL import Image, ImageFilter
from synthetic_drive_plot import plot_drive

from flss_edge.adversary import cross_entropy_of, pgd
from flss_edge.checkpoint import load_checkpoint
from flss_edge.cli.labelled import load_for_bundle
from flss_edge.data import ImageSet
from flss_runtime.atomic import atomic_write
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.environment import describe_environment
from flss_runtime.errors import DataError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.replay import open_frames, replay
from flss_runtime.replay.bag_writer import decision_bag
from flss_runtime.replay.cdr import CdrWriter
from flss_runtime.replay.decision_message import write_header
from flss_runtime.replay.definitions import IMAGE, SCHEMAS
from flss_runtime.stream import Origin, StreamResult, TemporalVote

SCENE_FRAMES, FRAMES_PER_S = 12, 30
# What lies on the way, and how many scenes of it.
WAY = (
    ("clear", 8),
    ("noise", 6),
    ("clear", 4),
    ("blur", 6),
    ("clear", 4),
    ("patch", 6),
    ("clear", 4),
    ("PGD", 6),
    ("clear", 4),
)
CAMERA_NOISE, MOST_NOISE = 2.0, 80.0  # standard deviations, in grey levels of 255
MOST_BLUR = 3.0  # standard deviation, in pixels
PATCH = slice(10, 22)  # rows and columns of 32
STEPS = 40
TOPIC = "/camera/image_raw"
STEADY_FRAMES, STEADY_NEEDED = 5, 4
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """One frame of the drive: what it shows, of which class that is, and what was done to it."""

    pixels: Pixels
    label: int
    condition: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the drive, replay it, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="calibrated bundle")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what it was exported from")
    parser.add_argument("--data", type=Path, required=True, help="labelled images of its classes, 32x32")
    parser.add_argument("--images", type=int, default=1000, help="of the test split to choose from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(options.bundle)
    rng = np.random.default_rng(options.seed)
    data = load_for_bundle(bundle, options.data, "test", options.images)
    scenes = known_scenes(bundle, data, rng)
    drive = list(frames_of(scenes, load_checkpoint(options.checkpoint).flss().eval(), rng))
    write_bag(options.output / "drive.mcap", drive)
    results = decide(bundle, options.output, options.seed)
    names = [options.bundle.name, "--checkpoint", options.checkpoint.name, "--data", options.data.name]
    command = shlex.join(["python", "examples/synthetic_drive.py", *names, "--images", str(options.images)])
    config = {"command": command, "seed": options.seed, "images": len(data), "data_sha256": data.sha256}
    outcome = outcome_of(drive, results, bundle, config)
    with atomic_write(options.output / "drive.json") as temporary:
        temporary.write_text(json.dumps(outcome), encoding="utf-8")
    plot_drive(outcome, options.output / "timeline.png")
    for row in outcome["results"]["conditions"]:
        print("{condition:6} {frames:4} frames: {right:4} right, {wrong:3} wrong, {rejected:3} rejected, "
              "vote share {vote_share:.2f}, driving {driving:.0%}".format(**row))  # fmt: skip
    print(f"wrote {options.output}/drive.mcap, decisions.mcap, drive.json, timeline.png", file=sys.stderr)
    return 0


def known_scenes(bundle: Bundle, data: ImageSet, rng: np.random.Generator) -> list[tuple[Pixels, int]]:
    """Choose an image a scene among those that are accepted and right."""
    with open_classifier(bundle, noise=SeededNoise(1)) as classifier:
        decisions = classifier.classify(data.images)
    right = [place for place, each in enumerate(decisions) if each.label == data.labels[place]]
    count = sum(scenes for _, scenes in WAY)
    if len(right) < count:
        raise DataError(
            f"{len(right)} of {len(data)} images are accepted and right, {count} are needed", "--images MORE"
        )
    return [(data.images[place], int(data.labels[place])) for place in rng.choice(right, count, replace=False)]


def frames_of(scenes: Sequence[tuple[Pixels, int]], network: Any, rng: np.random.Generator) -> Iterator[Shown]:
    """Yield what the camera sees on the way; noise and blur grow over their scenes."""
    left = iter(scenes)
    for condition, count in WAY:
        for scene in range(count):
            image, label = next(left)
            if condition in ("patch", "PGD"):
                image = attacked(image, label, network, PATCH if condition == "patch" else None)
            for frame in range(SCENE_FRAMES):
                strength = (scene * SCENE_FRAMES + frame + 1) / (count * SCENE_FRAMES)
                seen = image
                if condition == "blur":
                    seen = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(MOST_BLUR * strength)))
                deviation = CAMERA_NOISE + (MOST_NOISE * strength if condition == "noise" else 0.0)
                noisy = np.rint(seen + rng.normal(0, deviation, image.shape))
                yield Shown(noisy.clip(0, 255).astype(np.uint8), label, condition)


def attacked(image: Pixels, label: int, network: Any, patch: slice | None) -> Pixels:
    """Attack the path without sampling: any change of a patch, or one of 8/255 everywhere."""
    pixels = torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]
    where = torch.ones_like(pixels)
    epsilon = 8 / 255
    if patch is not None:
        where.zero_()[..., patch, patch] = 1
        epsilon = 1.0

    def logits_of(changed: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(torch.where(where > 0, changed, pixels))
        return logits

    objective = cross_entropy_of(logits_of, torch.tensor([label]))
    changed = pgd(objective, pixels, pixels, epsilon=epsilon, step_size=epsilon / 8, steps=STEPS)
    changed = torch.where(where > 0, changed, pixels)[0].permute(1, 2, 0)
    return np.rint(changed.numpy() * 255).astype(np.uint8)


def write_bag(path: Path, drive: Sequence[Shown]) -> None:
    """Record the drive as a camera driver and `ros2 bag record -s mcap` would."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        schema = writer.register_schema(IMAGE, "ros2msg", SCHEMAS[IMAGE].encode())
        channel = writer.register_channel(TOPIC, "cdr", schema)
        for number, shown in enumerate(drive):
            time_ns = number * 1_000_000_000 // FRAMES_PER_S
            height, width = shown.pixels.shape[:2]
            message = CdrWriter()
            write_header(message, time_ns, "camera")
            message.number("uint32", height)
            message.number("uint32", width)
            message.text("rgb8")
            message.number("uint8", 0)
            message.number("uint32", 3 * width)
            message.octets(shown.pixels.tobytes())
            writer.add_message(channel, time_ns, message.message(), publish_time=time_ns, sequence=number)
        writer.finish()


def decide(bundle: Bundle, folder: Path, seed: int) -> list[StreamResult]:
    """Replay the bag; the decisions go to another one, with the images beside them."""
    origin = Origin("ort", "fp32", "latent", bundle.path.name, bundle.digest, bundle.noise_scale)
    about = {"bundle": bundle.path.name, "bundle_sha256": bundle.digest}
    results = []
    with (
        open_classifier(bundle, noise=SeededNoise(seed)) as classifier,
        open_frames(folder / "drive.mcap") as frames,
        decision_bag(
            folder / "decisions.mcap", bundle.class_names, about, images=frames.topic, overwrite=True
        ) as decisions,
    ):
        for frame, result in replay(frames, classifier, origin, steady=TemporalVote(STEADY_FRAMES, STEADY_NEEDED)):
            decisions.add(frame, result)
            results.append(result)
    return results


def outcome_of(
    drive: Sequence[Shown], results: Sequence[StreamResult], bundle: Bundle, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Give every frame's outcome and, for each condition, what they come to, as JSON values."""
    labels = [shown.label for shown in drive]
    frames = [
        {
            "time_s": round(result.frame / FRAMES_PER_S, 4),
            "condition": shown.condition,
            "status": result.decision.status.value,
            "vote_share": result.decision.vote_share,
            "right": result.decision.label == shown.label,
            "driving": result.steady is not None,
            # A class that was right within these five frames is no mistake: a new scene needs four of its own.
            "driving_right": result.steady in labels[max(0, result.frame - STEADY_FRAMES + 1) : result.frame + 1],
        }
        for shown, result in zip(drive, results, strict=True)
    ]
    policy = bundle.policy()
    return {
        "schema_version": 1,
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": describe_environment(),
        "config": {
            **config,
            "num_samples": policy.num_samples,
            "min_votes": policy.min_votes,
            "steady": f"{STEADY_NEEDED}/{STEADY_FRAMES}",
        },
        "results": {
            "conditions": [_row(name, frames) for name in dict.fromkeys(name for name, _ in WAY)],
            "frames": frames,
        },
    }


def _row(condition: str, frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [frame for frame in frames if frame["condition"] == condition]
    accepted = sum(frame["status"] == "accepted" for frame in mine)
    right = sum(frame["right"] for frame in mine)
    return {
        "condition": condition,
        "frames": len(mine),
        "right": right,
        "wrong": accepted - right,
        "rejected": len(mine) - accepted,
        "vote_share": float(np.mean([frame["vote_share"] for frame in mine])),
        "driving": float(np.mean([frame["driving"] for frame in mine])),
        "driving_right": float(np.mean([frame["driving_right"] for frame in mine])),
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""How many frames until the drift monitor notices Gaussian noise, blur or an attack, and does it stay quiet before?

usage: python benchmarks/drift.py c10.bundle --checkpoint c10.pt --data cifar10.npz -o drift.json

Real images are decided by the real bundle: as they are, with noise or blur, and attacked by PGD on the path without
sampling, all as the 8-bit images that a camera would give. Streams are drawn from these decisions: clean ones first,
then all of one kind. Frames are independent, or scenes of several frames that show one image, whose votes then stay as
they are: no stream hangs together more. The monitor is the robot's own, frame by frame, once with the bundle's own
calibration as the reference and once with half of the data, which it is not tested on. Nothing is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from command_line import add_result_options, require_at_least, run_timing
from drift_plot import plot_drift

from flss_edge.attacks.pgd import pgd_attack
from flss_edge.augment import to_float
from flss_edge.checkpoint import load_checkpoint
from flss_edge.cli.labelled import load_for_bundle
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS
from flss_edge.robustness.corruptions import gaussian_blur, gaussian_noise
from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import Decision
from flss_runtime.drift import DRIFTING, DriftMonitor, DriftReference, drift_reference
from flss_runtime.drift.reference import record_votes
from flss_runtime.environment import describe_environment
from flss_runtime.errors import DataError, UncalibratedError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.statistics import clopper_pearson, clopper_pearson_upper
from flss_runtime.validity import Flag, flag

CLEAN = "clean"
UNCHANGED = "some, unchanged"  # what else is found of small changes is these few images, not their change
DEVIATIONS = (0.1, 0.2, 0.3)  # of Gaussian noise, of pixels in [0, 1]; 0.1 is the strongest of CIFAR-10-C
SIGMAS = (1, 2, 3)  # of the blur, in pixels of a 32 x 32 image; 1 is the strongest of CIFAR-10-C
EPSILONS = (8,)  # of PGD, in 255ths
BATCH = 100
Pixels = npt.NDArray[np.uint8]
Change = Callable[[torch.Tensor, torch.Tensor, Draws], torch.Tensor]
"""Images (B, 3, H, W) in [0, 1], labels (B,) and random numbers -> images."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_timing("drift.py", arguments, parse=_parse, measure=measure, plot=plot_drift, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Decide the images, run the streams; return the result's JSON values without the command."""
    bundle = load_bundle(options.bundle)
    own = _reference(bundle)
    data = load_for_bundle(bundle, options.data, options.split)
    if len(data) < 2 * options.images:
        raise DataError(f"{data.source} has only {len(data)} images", f"give {2 * options.images}, or fewer --images")
    shown = data.take(np.arange(0, len(data), 2), f"{data.source}[every other]")
    with open_classifier(bundle, noise=SeededNoise(options.seed), threads=1) as classifier:
        others = classifier.classify(data.images[1::2])
        decided = _decided(classifier, shown, options)
    references = own, _of_decisions(others, own)
    rows = _rows(references, decided, options)
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest, "checkpoint": options.checkpoint.name},
        "environment": describe_environment(),
        "config": {
            "data": {"source": data.source, "sha256": data.sha256},
            "images": {kind: len(pool) for kind, pool in decided.items()},
            "num_samples": own.num_samples,
            "min_votes": own.min_votes,
            "false_alarm_rate": options.rate,
            "frames_before": options.before,
            "streams": options.streams,
            "steps": options.steps,
        },
        "results": {
            "rows": rows,
            "references": [_shares(each, options.rate) for each in references],
            "rejected": {kind: float(np.mean([not each.accepted for each in pool])) for kind, pool in decided.items()},
        },
        "validity": {"flags": false_alarm_flags(rows, options.rate)},
    }


def run_streams(
    monitor: DriftMonitor,
    clean: Sequence[Decision],
    changed: Sequence[Decision],
    scene: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return how often and after how many frames the monitor alarms, over streams that change from clean to changed.

    Args:
        monitor: It is reset for each stream.
        clean: What the frames before the change are drawn from, with replacement.
        changed: Likewise after it.
        scene: Frames that show one image.
        options: streams, and frames before and after the change.
    """
    after = options.after if scene == 1 else options.after_scenes
    delays, early = [], 0
    for stream in range(options.streams):
        rng = np.random.default_rng([options.seed, stream])
        monitor.reset()
        for decision in _scenes(rng, clean, scene, options.before):
            monitor.update(decision)
        if monitor.state == DRIFTING:
            early += 1
            continue
        delays.append(_delay(monitor, _scenes(rng, changed, scene, after)))
    found = [delay for delay in delays if delay is not None]
    every = sorted(float("inf") if delay is None else float(delay) for delay in delays)
    return {
        "streams": options.streams,
        "frames_after": after,
        "early": early,
        "found": len(found),
        "delays": delays,
        "median": _quantile(every, 0.5),
        "low": _quantile(every, 0.05),
        "high": _quantile(every, 0.95),
    }


def false_alarm_flags(rows: Sequence[Mapping[str, Any]], rate: float) -> list[Flag]:
    """Return what says that the monitor alarms more often than it states where nothing changes."""
    flags = []
    for row in rows:
        alarms = row["early"] + (row["found"] if row["kind"] == CLEAN else 0)
        low, _ = clopper_pearson(alarms, row["streams"])
        if low > rate:
            where = f"{row['kind']}, scenes of {row['scene_frames']}, {row['reference_images']} images"
            detail = f"{where}: {alarms} of {row['streams']} streams alarm without a change, {rate:.1%} are stated"
            flags.append(flag("false_alarms", detail))
    return flags


def _delay(monitor: DriftMonitor, decisions: Iterator[Decision]) -> int | None:
    before: int = monitor.report()["frames"]
    for decision in decisions:
        monitor.update(decision)
        if monitor.state == DRIFTING:
            break
    since: int | None = monitor.report()["since_frame"]
    return None if since is None else since - before


def _scenes(rng: np.random.Generator, decisions: Sequence[Decision], scene: int, frames: int) -> Iterator[Decision]:
    """Return so many frames of scenes that show an image each; the first begins in the middle of one."""
    skipped = int(rng.integers(scene))
    images = rng.integers(len(decisions), size=(frames + skipped) // scene + 1).tolist()
    shown = (decisions[image] for image in images for _ in range(scene))
    return islice(shown, skipped, skipped + frames)


def _quantile(ordered: Sequence[float], share: float) -> int | None:
    """Return the least value that the share of all, above 0, do not exceed; None where it was not reached."""
    if not ordered:
        return None
    value = ordered[math.ceil(share * len(ordered)) - 1]
    return None if np.isinf(value) else int(value)


def _rows(
    references: Sequence[DriftReference], decided: Mapping[str, Sequence[Decision]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = []
    for reference in references:
        for scene in (1, options.scene):
            monitor = DriftMonitor(reference, dwell_frames=scene, false_alarm_rate=options.rate)
            for kind, pool in decided.items():
                print(f"streams: {kind}, scenes of {scene}, {reference.images} images", file=sys.stderr, flush=True)
                found = run_streams(monitor, decided[CLEAN], pool, scene, options)
                rows.append({"kind": kind, "scene_frames": scene, "reference_images": reference.images, **found})
    return rows


def _reference(bundle: Bundle) -> DriftReference:
    reference = drift_reference(bundle)
    if reference is None:
        fix = f"flss-edge calibrate {bundle.path} --data DATA --budget 0.10"
        raise UncalibratedError(f"{bundle.path} has no calibration that kept its votes", fix)
    return reference


def _of_decisions(decisions: Sequence[Decision], own: DriftReference) -> DriftReference:
    """Return what a calibration on other images would have kept, with the threshold as it is."""
    kept = record_votes(decisions, own.num_samples)["reference"]
    return DriftReference(tuple(kept["votes"]), kept["gated"], own.min_votes)


def _decided(classifier: SmoothedClassifier, data: ImageSet, options: argparse.Namespace) -> dict[str, list[Decision]]:
    """Return the decisions about all images as they are, and about some of them changed in each way."""
    network = load_checkpoint(options.checkpoint).flss().eval()
    some = data.take(np.arange(options.images) * len(data) // options.images, data.source)
    decided = {CLEAN: classifier.classify(data.images), UNCHANGED: classifier.classify(some.images)}
    for kind, change in _kinds(network, options.steps).items():
        print(f"images: {kind}", file=sys.stderr, flush=True)
        decided[kind] = classifier.classify(_changed(change, some, options.seed))
    return decided


def _kinds(network: FLSS, steps: int) -> dict[str, Change]:
    kinds: dict[str, Change] = {}
    for deviation in DEVIATIONS:
        kinds[f"noise {deviation:g}"] = lambda images, _, draws, size=deviation: gaussian_noise(images, draws, size)
    for sigma in SIGMAS:
        kinds[f"blur {sigma:g} px"] = lambda images, _, draws, size=sigma: gaussian_blur(images, draws, size)
    for size in EPSILONS:
        settings = {"epsilon": size / 255, "steps": steps}
        kinds[f"PGD {size}/255"] = lambda images, labels, draws, settings=settings: pgd_attack(
            network, images, labels, draws=draws, **settings
        )
    return kinds


def _changed(change: Change, data: ImageSet, seed: int) -> Pixels:
    parts = []
    for step, start in enumerate(range(0, len(data), BATCH)):
        rows = slice(start, start + BATCH)
        images = to_float(torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2))
        draws = Draws(seed, step, len(images), slice(None), torch.device("cpu"))
        changed = change(images, torch.from_numpy(data.labels[rows]), draws).clamp(0, 1)
        parts.append((changed * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _shares(reference: DriftReference, rate: float) -> dict[str, Any]:
    rejected = reference.below(reference.min_votes) / reference.images
    return {
        "images": reference.images,
        "reject_rate": rejected,
        "interval": list(reference.bounds(reference.min_votes, rate / 2)),
    }


def _summary(result: Mapping[str, Any]) -> str:
    found = result["results"]
    lines = [
        f"reference of {each['images']} images: {each['reject_rate']:.1%} rejected, "
        f"an alarm on rejections needs more than {each['interval'][1]:.1%}"
        for each in found["references"]
    ]
    for row in found["rows"]:
        words = f"{row['reference_images']:5} images, scenes of {row['scene_frames']:2}, {row['kind']:15}: "
        words += f"{found['rejected'][row['kind']]:.1%} rejected, found in {row['found']} of "
        words += (
            f"{row['streams'] - row['early']}, frames median {row['median']}, 5 to 95 % {row['low']} to {row['high']}"
        )
        if row["kind"] == CLEAN:
            most = clopper_pearson_upper(row["found"] + row["early"], row["streams"])
            words += f"; at most {most:.1%} false alarms (95 %)"
        lines.append(words)
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="calibrated, so that its votes were kept")
    parser.add_argument("--checkpoint", type=Path, required=True, help="that the bundle was exported from; is attacked")
    parser.add_argument("--data", type=Path, required=True, help="labelled images, as flss-edge evaluate takes them")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=1000, help="that are changed, evenly spaced")
    parser.add_argument("--steps", type=int, default=10, help="of PGD")
    parser.add_argument("--scene", type=int, default=30, help="frames that show one image, in the second half")
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--before", type=int, default=600, help="clean frames before the change")
    parser.add_argument("--after", type=int, default=12_000, help="frames after it, where they are independent")
    parser.add_argument("--after-scenes", type=int, default=60_000, help="the same in scenes")
    parser.add_argument("--rate", type=float, default=0.01, help="of false alarms in a day at 30 frames a second")
    parser.add_argument("--seed", type=int, default=0)
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, images=2, steps=1, scene=2, streams=2, before=0, after=1, after_scenes=1)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())

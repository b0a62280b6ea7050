"""`flss-edge evaluate BUNDLE`: what ships, on clean images or on adversarial ones that were saved; needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flss_edge.classifiers.answers import Answers
from flss_edge.cli.evaluation_options import EvaluationOptions
from flss_edge.cli.evaluation_report import document_of
from flss_edge.cli.labelled import load_for_bundle
from flss_edge.cli.output import Document, progress
from flss_edge.data import ImageSet
from flss_edge.robustness.adversarial_set import AdversarialSet, read_adversarial_set
from flss_edge.robustness.check import Check
from flss_edge.robustness.overlap import calibrated_on, data_is_new, recorded_uses
from flss_edge.robustness.results import classifier_results, corruption_results
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.environment import describe_environment
from flss_runtime.errors import DataError, UsageError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.sampling import DETERMINISTIC

ROUNDING = 1e-6  # of float32 sums of pixels


def evaluate_bundle(path: Path, options: EvaluationOptions) -> Document:
    """Measure a bundle as a robot runs it."""
    _check_options(options)
    bundle = load_bundle(path)
    policy = bundle.policy(options.num_samples, options.sampling)
    notes: list[str] = []
    checks: list[dict[str, Any]] = []
    if options.replay is None:
        labels, attacks, images = _clean(bundle, options)
        data: dict[str, Any] = {"data": images.source, "data_sha256": images.sha256}
        checks = [asdict(_served_before(bundle, images, options))] if options.checks else []
        batches: Any = [images.images]
    else:
        saved = read_adversarial_set(options.replay)
        check_fits(bundle, saved)
        labels, attacks = saved.labels, saved.attacks
        data = {key: saved.description.get(key) for key in ("data", "data_sha256", "epsilon", "suites", "sha256")}
        batches = in_the_ball(saved)
        notes += _differing(bundle, saved, options, policy)
    noise = SeededNoise(options.seed)
    answers: dict[str, Answers] = {}
    with (
        open_classifier(
            bundle,
            options.engine,
            sampling=options.sampling,
            policy=policy,
            noise=noise,
            threads=options.threads,
            strict=options.strict,
        ) as classifier,
        progress() as report,
    ):
        for number, (attack, images_of) in enumerate(zip(attacks, batches, strict=True)):
            report(str(attack["name"]), number / len(attacks))
            answers[attack["name"]] = _answers(classifier, images_of)
    groups = {attack["name"]: tuple(attack["groups"]) for attack in attacks}
    # As a checkpoint's classifiers are named; logit sampling is the vote in another way.
    votes = "deterministic-vote" if options.sampling == DETERMINISTIC else "vote"
    name = "cascade" if bundle.has_gate else votes
    threshold, highest = float(policy.min_votes), float(policy.num_samples * (2 if name == "cascade" else 1))
    results = {
        "classifiers": [classifier_results(name, threshold, "of the bundle", labels, answers, groups, None, highest)],
        "corruptions": corruption_results(name, labels, answers, groups),
        "attacks": list(attacks),
        "checks": checks,
    }
    config = {
        "engine": options.engine,
        "sampling": options.sampling,
        "seed": options.seed,
        "n": len(labels),
        "num_samples": policy.num_samples,
        "noise_scale": policy.noise_scale,
        "min_votes": policy.min_votes,
        "min_confidence": policy.min_confidence,
        **data,
    }
    artifact = {"bundle": path.name, "digest": bundle.digest}
    found = {name: value for name, value in results.items() if value}
    return document_of(found, config, artifact, describe_environment(), notes)


def _check_options(options: EvaluationOptions) -> None:
    """Refuse what only a checkpoint can do, before somebody takes clean figures for attacked ones."""
    only = {
        "--suite": options.suites != ("quick",),
        "--set": options.settings,
        "--against": options.against,
        "--gate": options.gate,
        "--transfer-from": options.sources,
        "--eot": options.eot,
        "--calibration": options.calibration,
        "--sweep": options.sweep,
        "--corruptions": options.corruptions,
        "--out-of-distribution": options.out_of_distribution,
        "--save-adversarial": options.save_adversarial,
        "--folder": options.folder,
    }
    for name, given in only.items():
        if given:
            fix = "attack the checkpoint with --save-adversarial FILE, and --replay FILE on the bundle"
            raise UsageError(f"{name} needs gradients or a calibration of its own: a bundle has neither", fix)
    if options.replay is not None and (options.limit is not None or options.data is not None):
        raise UsageError("--replay brings its own images", "leave out --data and --limit")


def in_the_ball(saved: AdversarialSet) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the images of each attack; those of a bounded one must lie within the radius that the file states.

    Raises:
        DataError: one lies outside, or the file is damaged.
    """
    clean = saved.images(0)
    for number, attack in enumerate(saved.attacks):
        images = clean if number == 0 else saved.images(number)
        distance = float(np.abs(images - clean).max())
        if "corruption" not in attack["groups"] and distance > attack["epsilon"] + ROUNDING:
            raise DataError(
                f"{saved.path}: {attack['name']} is {255 * distance:.4g}/255 away from the clean images; its radius is "
                f"{255 * attack['epsilon']:.4g}/255",
                "evaluate the checkpoint again with --save-adversarial",
            )
        yield images


def _differing(bundle: Bundle, saved: AdversarialSet, options: EvaluationOptions, policy: SmoothingPolicy) -> list[str]:
    """Say in which respects this is no replay of what was saved."""
    if saved.description.get("sha256") != bundle.manifest["checkpoint"]["sha256"]:
        return [
            "WARNING these images were made against another checkpoint: they show transfer, not this bundle's worth"
        ]
    here = {"num_samples": policy.num_samples, "noise_scale": policy.noise_scale}
    if options.sampling != DETERMINISTIC:
        here["seed"] = options.seed
    return [
        f"WARNING {key} is {value} here and {saved.description.get(key)} in the file: the votes will differ by chance"
        for key, value in here.items()
        if saved.description.get(key) != value
    ]


def _clean(bundle: Bundle, options: EvaluationOptions) -> tuple[Any, Sequence[Mapping[str, Any]], ImageSet]:
    if options.data is None:
        raise UsageError("evaluate needs labelled images", "add --data DATA, or --replay FILE")
    found = load_for_bundle(bundle, options.data, options.split, options.limit)
    return found.labels, [{"name": "clean", "groups": ["clean"], "epsilon": 0.0, "victim": ""}], found


def _answers(classifier: SmoothedClassifier, images: np.ndarray[Any, Any]) -> Answers:
    decisions = classifier.classify(images)
    for decision in decisions:
        if decision.top_label is None:
            raise DataError(
                f"an image cannot be classified: {decision.reason}", "evaluate images of the bundle's input"
            )
    most = classifier.policy.num_samples
    # What the gate of a cascade lets pass is accepted whatever its votes: it stands above all votes.
    scores = [decision.votes + (most if decision.gated else 0) for decision in decisions]
    return Answers(
        np.array([decision.top_label for decision in decisions], np.int64),
        np.array(scores, np.float64),
        np.array([decision.accepted for decision in decisions], np.bool_),
    )


def check_fits(bundle: Bundle, saved: AdversarialSet) -> None:
    """Refuse attacked images of other classes than the bundle's.

    Raises:
        DataError: number, names or order of the classes differ.
    """
    classes = saved.description.get("classes")
    if classes is not None and tuple(classes) != tuple(bundle.class_names):
        raise DataError(
            f"{saved.path} has {len(classes)} classes ({', '.join(classes[:3])} …), "
            f"the bundle {len(bundle.class_names)} ({', '.join(bundle.class_names[:3])} …)",
            "replay images of the same classes, in the same order",
        )
    if saved.labels.min() < 0 or saved.labels.max() >= len(bundle.class_names):
        raise DataError(
            f"labels run from {saved.labels.min()} to {saved.labels.max()}, the bundle's classes from 0 to "
            f"{len(bundle.class_names) - 1}",
            "replay images of the bundle's own classes",
        )


def _served_before(bundle: Bundle, images: ImageSet, options: EvaluationOptions) -> Check:
    """Say whether these images trained, chose or calibrated what is in the bundle."""
    assert options.data is not None
    data = options.data
    load = functools.partial(load_for_bundle, bundle, data)
    calibration = bundle.calibration(options.num_samples, options.sampling) or {}
    known = {"calibration": calibrated_on(calibration.get("data_sha256"), load)}
    for key, whose in (("checkpoint", ""), ("gate_checkpoint", "the gate")):
        if key in bundle.manifest:
            known |= recorded_uses(bundle.manifest[key].get("training") or {}, images, load, whose)
    return data_is_new(images, known)

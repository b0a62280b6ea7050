"""`flss-edge evaluate CHECKPOINT`: a campaign of attacks in torch, and what it writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flss_edge import __version__
from flss_edge.attacks import PlannedAttack
from flss_edge.attacks.suites import SuiteSettings, check_suites, planned
from flss_edge.augment import to_float
from flss_edge.checkpoint import Checkpoint, load_checkpoint
from flss_edge.cli.evaluation_images import images_of, spaced, split_of
from flss_edge.cli.evaluation_options import SWEEPS, EvaluationOptions
from flss_edge.cli.evaluation_report import command_of, document_of, draw_examples, write_reports
from flss_edge.cli.output import Document, duration, progress, say
from flss_edge.cli.training_session import entered_by_first, readable_torch_errors
from flss_edge.cli.training_setup import resolved_device
from flss_edge.data import ImageSet, load_images
from flss_edge.model import FLSS
from flss_edge.parallel import Processes, join
from flss_edge.robustness.adversarial_set import write_adversarial_set
from flss_edge.robustness.campaign import Campaign
from flss_edge.robustness.corruptions import planned_corruptions
from flss_edge.robustness.evaluation import Extras, campaign_of, results_of
from flss_edge.robustness.out_of_distribution import outside_images
from flss_edge.robustness.overlap import recorded_uses
from flss_edge.robustness.state import State, occupied
from flss_edge.robustness.subject import Subject, subject_of
from flss_edge.robustness.sweeps import sweep_rows, swept
from flss_runtime.atomic import refuse_existing
from flss_runtime.environment import describe_environment
from flss_runtime.errors import UsageError
from flss_runtime.images import InputSpec

SHOWN_FROM = 0.002  # of all work: earlier, the time left would be a guess


def evaluate_checkpoint(path: Path, options: EvaluationOptions) -> Document | None:
    """Attack a checkpoint and return the result, or None in every process but the first."""
    with ExitStack() as stack:
        stack.enter_context(readable_torch_errors())
        _check_options(options)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        processes, name = stack.enter_context(join(resolved_device(options.device)))
        if processes.count > 1 and options.folder is None:
            raise UsageError("several processes need a place to meet", "add --folder DIR")
        return _evaluate(path, options, processes, torch.device(name))


def _evaluate(path: Path, options: EvaluationOptions, processes: Processes, device: torch.device) -> Document | None:
    checkpoint = load_checkpoint(path)
    images, calibration = images_of(checkpoint, options)
    subject = _subject(checkpoint, calibration, options, device)
    sources = {name: load_checkpoint(path).model.to(device).eval() for name, path in _sources(options).items()}
    plan = _plan(subject, calibration, sources, options, device)
    subject, plan = swept(options.sweep, subject, plan, calibration, budget=options.budget, device=device)
    extras = _extras(checkpoint, images, calibration, sources, options)
    campaign = campaign_of(
        subject, images, plan, extras, seed=options.seed, batch_size=options.batch_size, device=device
    )
    with ExitStack() as stack:
        if options.folder is not None:
            identity = _identity(checkpoint, campaign, calibration, options)
            claim = occupied(options.folder, identity, overwrite=options.overwrite)
            stack.enter_context(entered_by_first(claim, processes))
        state = State(options.folder, keep_images=options.save_adversarial is not None)
        _run(campaign, state, processes)
        processes.any(False)  # wait for the others' batches
        if not processes.first:
            return None
        return _report(path, checkpoint, campaign, state, subject, calibration, extras, options)


def _check_options(options: EvaluationOptions) -> None:
    if options.data is None:
        raise UsageError("evaluate needs labelled images", "add --data DATA")
    check_suites(options.suites, options.epsilon)
    if not 0 < options.budget < 1:
        raise UsageError(f"--budget is {options.budget:g}", "give a share between 0 and 1, for example 0.10")
    if options.sweep is not None and options.sweep not in SWEEPS:
        raise UsageError(f"there is no sweep {options.sweep!r}", f"use one of {', '.join(SWEEPS)}")
    if options.sources and "all" not in options.suites:
        raise UsageError("--transfer-from is for suite all", "add --suite all, or leave it out")
    if options.against and not {"adaptive", "all", "quick"} & set(options.suites):
        raise UsageError("--against is for adaptive attacks", "add --suite adaptive, or leave it out")
    _sources(options)
    if options.save_adversarial is not None:
        refuse_existing(options.save_adversarial, options.overwrite)


def _subject(
    checkpoint: Checkpoint, calibration: ImageSet, options: EvaluationOptions, device: torch.device
) -> Subject:
    return subject_of(
        checkpoint,
        calibration,
        budget=options.budget,
        num_samples=options.num_samples or 100,
        noise_scale=options.noise_scale,
        seed=options.seed,
        device=device,
        gate=None if options.gate is None else load_checkpoint(options.gate),
    )


def _plan(
    subject: Subject,
    calibration: ImageSet,
    sources: Mapping[str, nn.Module],
    options: EvaluationOptions,
    device: torch.device,
) -> list[PlannedAttack]:
    guides = to_float(torch.from_numpy(calibration.images).permute(0, 3, 1, 2).to(device))
    settings = SuiteSettings(
        epsilon=options.epsilon,
        against=subject.against(options.against),
        samples=options.eot,
        sources=sources,
        guides=(guides, torch.from_numpy(calibration.labels).to(device)),
        gaussian=isinstance(subject.networks[0], FLSS),
        changed=_changed(options.settings),
    )
    plan = planned(options.suites, settings)
    return plan + planned_corruptions() if options.corruptions else plan


def _sources(options: EvaluationOptions) -> dict[str, Path]:
    """Return the checkpoints to transfer from, by names that tell them apart."""
    sources: dict[str, Path] = {}
    for path in options.sources:
        name = path.parent.resolve().name if path.stem in ("best", "last") else path.stem
        if name in sources:
            raise UsageError(f"two checkpoints to transfer from are called {name}", "rename one of the files")
        sources[name] = path
    return sources


def _changed(settings: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    changed: dict[str, dict[str, str]] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        attack, dot, key = name.rpartition(".")
        if not (equals and dot and attack and key and value):
            raise UsageError(f"--set {text} is no ATTACK.KEY=VALUE", "write for example --set square.queries=1000")
        changed.setdefault(attack, {})[key] = value
    return changed


def _extras(
    checkpoint: Checkpoint,
    images: ImageSet,
    calibration: ImageSet,
    sources: Mapping[str, nn.Module],
    options: EvaluationOptions,
) -> Extras:
    known: dict[str, ImageSet | str | None] = {"calibration": calibration}
    if options.checks:
        known |= recorded_uses(checkpoint.training, images, lambda split: split_of(checkpoint, split, options))
    if options.checks and options.gate is not None:
        gate = load_checkpoint(options.gate)
        known |= recorded_uses(gate.training, images, lambda split: split_of(gate, split, options), "the gate")
    outside = None
    if options.out_of_distribution is not None:
        size = checkpoint.model.config.image_size
        found = load_images(options.out_of_distribution, "test", spec=InputSpec(size, size))
        outside = outside_images(spaced(found, replace(options, limit=len(images))), images)
    return Extras(checks=options.checks, known=known, sources=sources, outside=outside)


def _identity(
    checkpoint: Checkpoint, campaign: Campaign, calibration: ImageSet, options: EvaluationOptions
) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.sha256,
        "data": campaign.images.sha256,
        "calibration": calibration.sha256,
        "version": __version__,
        "gate": None if options.gate is None else load_checkpoint(options.gate).sha256,
        "sources": {name: load_checkpoint(path).sha256 for name, path in _sources(options).items()},
        "plan": [
            [attack.name, attack.epsilon, attack.samples, attack.victim, *attack.starts] for attack in campaign.plan
        ],
        "settings": sorted(options.settings),
        "classifiers": {each.name: each.threshold for each in campaign.classifiers},
        "num_samples": options.num_samples or 100,
        "noise_scale": options.noise_scale,
        "seed": campaign.seed,
        "batch_size": campaign.batch_size,
    }


def _run(campaign: Campaign, state: State, processes: Processes) -> None:
    total = campaign.passes / processes.count
    done = paid = 0
    began = time.monotonic()
    with progress() as report:
        for step in campaign.run(state, rank=processes.rank, count=processes.count):
            done += step.images * step.passes
            paid += 0 if step.loaded else step.images * step.passes
            if processes.first:
                left = (time.monotonic() - began) / max(paid, 1) * max(total - done, 0)
                when = "" if paid < SHOWN_FROM * total else f", {duration(left)} left"
                report(f"{step.attack}, {min(1.0, done / total):.0%} done{when}", min(1.0, done / total))


def _report(
    path: Path,
    checkpoint: Checkpoint,
    campaign: Campaign,
    state: State,
    subject: Subject,
    calibration: ImageSet,
    extras: Extras,
    options: EvaluationOptions,
) -> Document:
    say("attacks done; checking them and writing the report")
    outcome = campaign.outcome(state)
    rule = f"strict rule, {options.budget:.0%} of {len(calibration)} images of {calibration.source}"
    results = results_of(campaign, outcome, subject, extras, epsilon=options.epsilon, rule=rule)
    if options.sweep is not None:
        results["sweep"] = sweep_rows(options.sweep, results["classifiers"])
    config = {
        "suites": list(options.suites),
        "epsilon": options.epsilon,
        "split": options.split,
        "seed": options.seed,
        "n": len(campaign.images),
        "data": campaign.images.source,
        "data_sha256": campaign.images.sha256,
        "calibration": {"data": calibration.source, "sha256": calibration.sha256, "n": len(calibration)},
        "budget": options.budget,
        "num_samples": options.num_samples or 100,
        "noise_scale": options.noise_scale,
        "eot": options.eot,
        "settings": list(options.settings),
        "batch_size": options.batch_size,
        "device": _device_name(campaign.device),
        "threads": torch.get_num_threads(),
        "recipe": checkpoint.training.get("config", {}).get("recipe"),
    }
    artifact = {"checkpoint": path.name, "sha256": checkpoint.sha256}
    if options.save_adversarial is not None:
        write_adversarial_set(
            options.save_adversarial,
            campaign.images.labels,
            {"attacks": results["attacks"], **config, "classes": list(checkpoint.class_names), **artifact},
            _attacked(campaign, state),
            overwrite=options.overwrite,
        )
    document = document_of(results, config, artifact, describe_environment())
    if options.folder is not None:
        write_reports(options.folder, document, command_of(path, options))
        draw_examples(options.folder, campaign, state, checkpoint.class_names)
    return document


def _attacked(campaign: Campaign, state: State) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    for attack in campaign.plan:
        pieces = [state.load(attack.name, start) for start in campaign.starts]
        yield np.concatenate([piece.images for piece in pieces if piece is not None])


def _device_name(device: torch.device) -> str:
    """Return the name of the GPU, or "cpu"."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"

"""Evaluations that vary one thing: the number of votes, the noise, or the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from flss_edge.attacks import PlannedAttack
from flss_edge.classifiers.of_checkpoint import NO_SAMPLING, VOTE, calibrated
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import Vote
from flss_edge.data import ImageSet
from flss_edge.robustness.subject import Subject
from flss_runtime.errors import UsageError

NUM_SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
NOISE_SCALES = (0.5, 1.0, 2.0, 3.0)
EPSILONS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)  # of 255


def swept(
    name: str | None,
    subject: Subject,
    plan: Sequence[PlannedAttack],
    calibration: ImageSet,
    *,
    budget: float,
    device: torch.device,
) -> tuple[Subject, list[PlannedAttack]]:
    """Return the classifiers and attacks of a sweep; without one, what was given.

    A sweep of votes or noise asks differently calibrated votes about the same attacked images. A sweep of the radius
    repeats every attack at each radius, rejections at parts of it included; its name ends in `@RADIUS/255`.

    Args:
        name: "num-samples", "noise-scale", "epsilon" or None.
        subject: whose vote is varied.
        plan: attacks at one radius, "clean" first.
        calibration: images that freeze the threshold of every variant.
        budget: as `subject_of`.
        device: of the networks.

    Raises:
        UsageError: the subject has no vote to vary.
    """
    if name is None:
        return subject, list(plan)
    if name == "epsilon":
        return subject, _over_radii(plan)
    vote = subject.named(VOTE)
    if not isinstance(vote, Vote):
        raise UsageError(
            "only the vote of an FLSS checkpoint can be varied", "sweep epsilon, or give an FLSS checkpoint"
        )
    if name == "num-samples":
        variants = [replace(vote, name=f"vote N={count}", num_samples=count, threshold=0) for count in NUM_SAMPLES]
    else:
        variants = [replace(vote, name=f"vote s={scale:g}", noise_scale=scale, threshold=0) for scale in NOISE_SCALES]
    chosen: list[SelectiveClassifier] = [*calibrated(list(variants), calibration, budget, device)]
    # The attacks of the plan may attack the vote itself, so it stays, and with it the path without sampling.
    needed = {VOTE, NO_SAMPLING, *(attack.victim for attack in plan)}
    kept = [each for each in subject.classifiers if each.name in needed]
    return replace(subject, classifiers=[*kept, *chosen]), list(plan)


def sweep_rows(name: str, classifiers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of a sweep in the order of what varied.

    Args:
        name: as `swept`.
        classifiers: as `results.classifier_results`.
    """
    rows = []
    for each in classifiers:
        if name == "epsilon":
            found = {group: metrics for group, metrics in each["groups"].items() if group.endswith("/255")}
            rows += [
                {"value": int(group.partition("/")[0]) / 255, "classifier": each["name"], "metrics": metrics}
                for group, metrics in found.items()
            ]
        elif "=" in each["name"]:
            *_, metrics = each["groups"].values()  # the last group is everything, or the only one
            rows.append({"value": float(each["name"].partition("=")[2]), "classifier": "vote", "metrics": metrics})
    return {"name": name, "rows": sorted(rows, key=lambda row: (row["classifier"], row["value"]))}


def _over_radii(plan: Sequence[PlannedAttack]) -> list[PlannedAttack]:
    varied = [attack for attack in plan if attack.bounded and attack.epsilon > 0]
    largest = max((attack.epsilon for attack in varied), default=1.0)
    return [
        *(attack for attack in plan if attack.epsilon == 0),
        *(
            replace(
                attack,
                name=f"{attack.name}@{radius}/255",
                epsilon=radius / 255 * attack.epsilon / largest,
                groups=(f"{radius}/255",),
                starts=tuple(f"{start}@{radius}/255" for start in attack.starts),
            )
            for radius in EPSILONS
            for attack in varied
        ),
    ]

"""One evaluation: from a subject and its options to a campaign, and from the campaign's outcome to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flss_edge.attacks import PlannedAttack
from flss_edge.attacks.features import features_of
from flss_edge.attacks.transfer import transfer
from flss_edge.augment import to_float
from flss_edge.classifiers.answers import Answers
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.deterministic import DeterministicVote
from flss_edge.classifiers.of_checkpoint import CCAT_OWN, MATCHED, NO_SAMPLING, VOTE, answers_to
from flss_edge.classifiers.pixel_noise import PixelNoiseVote, Smoothing
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.classifiers.vote import Vote
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws, seed_of
from flss_edge.model import Network
from flss_edge.robustness.campaign import Campaign, Outcome, Probe
from flss_edge.robustness.check import Check
from flss_edge.robustness.metrics import official
from flss_edge.robustness.out_of_distribution import out_of_distribution
from flss_edge.robustness.persistence import QUERIES, fooled_within
from flss_edge.robustness.results import (
    classifier_results,
    control_results,
    corruption_results,
    group_figures,
    persistent_results,
)
from flss_edge.robustness.sanity import adaptive_is_stronger, run_checks
from flss_edge.robustness.subject import Subject

COMPARED = (VOTE, "vote-fixed", "deterministic-vote")  # with the control at matched coverage
CHECKED_IMAGES = 100
JITTER = 0.25 / 255  # of a pixel: below what an 8-bit camera resolves


@dataclass(frozen=True, eq=False)
class Extras:
    """What an evaluation measures beside its attacks.

    Attributes:
        checks: whether the evaluation itself is checked.
        known: what the evaluated images must not be among, as `data_is_new` takes it.
        sources: networks whose adversarial images the checks try, by name.
        outside: images of other classes, or None.
        queries: persistent attackers' numbers of queries; none for no such attacker.
    """

    checks: bool = True
    known: Mapping[str, ImageSet | str | None] = field(default_factory=dict)
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    outside: ImageSet | None = None
    queries: Sequence[int] = QUERIES


def campaign_of(
    subject: Subject,
    images: ImageSet,
    plan: Sequence[PlannedAttack],
    extras: Extras,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Campaign:
    """Return the campaign that runs a plan against a subject, with a persistent attacker where there are votes."""
    probes: dict[str, Probe] = {}
    asked = [each for each in subject.classifiers if isinstance(each, Vote | DeterministicVote)]
    aimed = {attack.victim for attack in plan}
    for classifier in asked if extras.queries else ():
        victim = classifier.name if classifier.name in aimed else VOTE
        if victim in aimed:
            probes[f"persistent {classifier.name}"] = _persistent(classifier, victim, plan, extras.queries)
    return Campaign(plan, subject.classifiers, subject.networks, images, probes, seed, batch_size, device)


def results_of(
    campaign: Campaign, outcome: Outcome, subject: Subject, extras: Extras, *, epsilon: float, rule: str
) -> dict[str, Any]:
    """Return everything that a report shows, as JSON values.

    Args:
        campaign: a finished one.
        outcome: of it.
        subject: that was evaluated.
        extras: what else to measure.
        epsilon: radius of the evaluation in pixel units of [0, 1].
        rule: where the thresholds come from, in words.
    """
    groups = {attack.name: attack.groups for attack in campaign.plan}
    victims = {attack.name: attack.victim for attack in campaign.plan}
    labels = outcome.labels
    results: dict[str, Any] = {"classifiers": [], "corruptions": []}
    for classifier in subject.classifiers:
        answers = outcome.answers[classifier.name]
        plain = _without_sampling(classifier, subject, outcome)
        found = classifier_results(
            classifier.name,
            classifier.threshold,
            _rule(classifier, rule),
            labels,
            answers,
            groups,
            plain,
            _highest(classifier),
        )
        if classifier.name == VOTE and isinstance(classifier, Vote):
            as_released = official(answers, int(classifier.threshold), classifier.num_samples)
            found["official"] = group_figures(labels, as_released, groups, plain)
        results["classifiers"].append(found)
        results["corruptions"] += corruption_results(classifier.name, labels, answers, groups)
    results["attacks"] = [_attack_row(attack, outcome.seconds[attack.name], len(labels)) for attack in campaign.plan]
    results["persistent"] = persistent_results(outcome.probed)
    results["controls"] = control_results(labels, outcome.answers, groups, COMPARED, MATCHED, victims)
    if extras.outside is not None:
        results["out_of_distribution"] = [
            _outside_row(classifier, outcome.answers[classifier.name]["clean"], extras.outside, campaign)
            for classifier in subject.classifiers
        ]
    if extras.checks:
        checks = _checks(campaign, subject, extras, epsilon)
        checks += adaptive_is_stronger(labels, outcome.answers, campaign.plan)
        results["checks"] = [asdict(check) for check in checks]
    return {name: value for name, value in results.items() if value}


def _without_sampling(classifier: SelectiveClassifier, subject: Subject, outcome: Outcome) -> Mapping[str, Answers]:
    """Return the answers of the same network without sampling; a cascade's are those of its FLSS network."""
    network = getattr(classifier.vote if isinstance(classifier, Cascade) else classifier, "network", None)
    for each in subject.classifiers:
        if each.name in (NO_SAMPLING, "confidence") and getattr(each, "network", None) is network:
            return outcome.answers[each.name]
    return outcome.answers[classifier.name]


def _rule(classifier: SelectiveClassifier, budget: str) -> str:
    """Return where a classifier's threshold comes from, in words."""
    if isinstance(classifier, Smoothing):
        return f"its binomial test at level {1 - classifier.threshold:.3g}"
    if isinstance(classifier, Cascade):
        return "those of its gate and its vote"
    if classifier.name == CCAT_OWN:
        return "keeps 99 % of its correct answers to the calibration images"
    return "answers as many calibration images as the vote" if classifier.name == MATCHED else budget


def _highest(classifier: SelectiveClassifier) -> float:
    """Return the highest score that a classifier can give."""
    if isinstance(classifier, Cascade):
        return classifier.vote.num_samples + 1.0
    return float(classifier.num_samples) if isinstance(classifier, Vote | DeterministicVote | PixelNoiseVote) else 1.0


def _persistent(
    classifier: SelectiveClassifier, victim: str, plan: Sequence[PlannedAttack], queries: Sequence[int]
) -> Probe:
    """Return the probe that asks a classifier about the images that were made against `victim`, again and again."""
    epsilon = max(attack.epsilon for attack in plan)
    candidates = [attack.name for attack in plan if attack.victim == victim and "rejection" not in attack.name]

    def probe(
        images: Tensor, labels: Tensor, attacked: Mapping[str, Tensor], draws: Draws, first: int
    ) -> dict[str, npt.NDArray[np.bool_]]:
        arrays: dict[str, npt.NDArray[np.bool_]] = {}
        sent = torch.stack([attacked[name] for name in candidates])
        for mode, jitter in (("resend", 0.0), ("jitter", JITTER)):
            # A deterministic classifier answers a resent image as before, so its jittered queries are what matters.
            within = fooled_within(
                classifier,
                sent,
                labels,
                images=images,
                epsilon=epsilon,
                draws=draws,
                first=first,
                queries=queries,
                jitter=jitter,
            )
            arrays |= {
                f"{mode}, made against {victim} {count}": fooled for count, fooled in zip(queries, within, strict=True)
            }
        return arrays

    return probe


def _attack_row(attack: PlannedAttack, seconds: float, count: int) -> dict[str, Any]:
    return {
        "name": attack.name,
        "groups": list(attack.groups),
        "epsilon": attack.epsilon,
        "victim": attack.victim,
        "starts": list(attack.starts),
        "seconds": seconds,
        "images_per_s": count / seconds if seconds else None,
    }


def _outside_row(
    classifier: SelectiveClassifier, inside: Answers, outside: ImageSet, campaign: Campaign
) -> dict[str, Any]:
    found = out_of_distribution(inside, answers_to(classifier, outside, campaign.device))
    return {"classifier": classifier.name, "data": outside.source, "n": len(outside), **found.to_json()}


def _checks(campaign: Campaign, subject: Subject, extras: Extras, epsilon: float) -> list[Check]:
    count = min(CHECKED_IMAGES, len(campaign.images))
    # Evenly spaced, because folders are sorted by class.
    few = campaign.images.take(np.arange(count) * len(campaign.images) // count, "checked")
    images = to_float(torch.from_numpy(few.images).permute(0, 3, 1, 2).to(campaign.device))
    labels = torch.from_numpy(few.labels).to(campaign.device)

    def draws_of(name: str) -> Draws:
        return Draws(seed_of(campaign.seed, 0, f"check {name}"), 0, len(few), slice(0, len(few)), campaign.device)

    return run_checks(
        [each for each in subject.classifiers if each.name != MATCHED],
        subject.classifiers[0],
        images,
        labels,
        epsilon=epsilon,
        draws_of=draws_of,
        features=_features(subject),
        evaluated=campaign.images,
        known=extras.known,
        transferred={
            name: transfer(
                subject.classifiers[0],
                images,
                labels,
                epsilon=epsilon,
                draws=draws_of(f"transfer {name}"),
                source=network,
                method="pgd-7",
            )
            for name, network in extras.sources.items()
        },
        first=seed_of(campaign.seed, 0, "checks") >> 16,
    )


def _features(subject: Subject) -> Callable[[Tensor], Tensor]:
    network = subject.networks[0]
    kind = next(network.parameters()).dtype

    def features(images: Tensor) -> Tensor:
        return features_of(cast(Network, network), images.to(kind)).mean

    return features

"""From the answers of classifiers to the figures of a report; NumPy only, so that a robot's replay gives the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flss_edge.classifiers.answers import CLEAN, Answers, IntArray
from flss_edge.robustness.comparison import at_coverage_of, compare
from flss_edge.robustness.metrics import per_attack, share_of, summarise
from flss_edge.robustness.risk_coverage import risk_coverage, score_histogram

CORRUPTION = "corruption"
"""The suite of random corruptions."""

EVERYTHING = "everything"

Groups = Mapping[str, Sequence[str]]
"""Attack name -> names of the suites that it counts for."""


def classifier_results(
    name: str,
    threshold: float,
    rule: str,
    labels: IntArray,
    answers: Mapping[str, Answers],
    groups: Groups,
    no_sampling: Mapping[str, Answers] | None,
    highest: float = 1.0,
) -> dict[str, Any]:
    """Return everything that is reported of one classifier.

    Args:
        name: of the classifier.
        threshold: that it accepts from.
        rule: where the threshold comes from, in words.
        labels: (n,) int64, the true classes.
        answers: attack -> answers to the n images; "clean" is one of them.
        groups: of every attack.
        no_sampling: the same attacks answered by the network without sampling, None where there is none.
        highest: the highest possible score: N for votes, 1 for a confidence.
    """
    attacked = attacks_of(answers, groups)
    return {
        "name": name,
        "threshold": threshold,
        "rule": rule,
        "groups": group_figures(labels, answers, groups, no_sampling),
        "attacks": per_attack(labels, attacked),
        "risk_coverage": risk_coverage(labels, attacked),
        "histogram": score_histogram(labels, attacked, highest),
    }


def group_figures(
    labels: IntArray, answers: Mapping[str, Answers], groups: Groups, no_sampling: Mapping[str, Answers] | None
) -> dict[str, Any]:
    """Return `metrics.summarise` of every suite, and of everything where there are several; as `classifier_results`."""
    attacked = attacks_of(answers, groups)
    names = dict.fromkeys(group for attack in attacked for group in groups[attack] if group != CLEAN)
    sets = {group: [attack for attack in attacked if group in groups[attack]] for group in names}
    if not sets:
        sets[CLEAN] = []
    elif len(sets) > 1:
        sets[EVERYTHING] = [attack for attack in attacked if attack != CLEAN]
    return {
        group: summarise(labels, {each: attacked[each] for each in (CLEAN, *members)}, no_sampling)
        for group, members in sets.items()
    }


def attacks_of(answers: Mapping[str, Answers], groups: Groups) -> dict[str, Answers]:
    """Return the answers without those to random corruptions: chance is no attack."""
    return {attack: each for attack, each in answers.items() if CORRUPTION not in groups[attack]}


def corruption_results(
    name: str, labels: IntArray, answers: Mapping[str, Answers], groups: Groups
) -> list[dict[str, Any]]:
    """Return a row for each corruption and severity of one classifier; corruption names end in `-severity`."""
    rows = []
    for attack, each in answers.items():
        if CORRUPTION not in groups[attack]:
            continue
        kind, _, severity = attack.rpartition("-")
        right, accepted = each.labels == labels, each.accepted
        rows.append(
            {
                "classifier": name,
                "corruption": kind,
                "severity": int(severity),
                "accuracy_0": float(right.mean()),
                "accuracy_accepted": float(right[accepted].mean()) if accepted.any() else None,
                "coverage": float(accepted.mean()),
                "n": len(labels),
            }
        )
    return rows


def persistent_results(probed: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each classifier, way of asking and number of queries; probes are named `persistent CLASSIFIER`.

    Their arrays are named `MODE QUERIES` and say of each image whether it was fooled.
    """
    rows = []
    for probe, arrays in probed.items():
        for key, fooled in arrays.items():
            mode, _, queries = key.rpartition(" ")
            row = {"classifier": probe.removeprefix("persistent "), "mode": mode, "queries": int(queries)}
            rows.append({**row, "fooled": share_of(fooled), "n": len(fooled)})
    return rows


def control_results(
    labels: IntArray,
    answers: Mapping[str, Mapping[str, Answers]],
    groups: Groups,
    names: Sequence[str],
    control: str,
    victims: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Compare classifiers with their control under every attack of the evaluation.

    Args:
        labels: (n,) int64, the true classes.
        answers: classifier -> attack -> answers.
        groups: of every attack.
        names: classifiers to compare, as far as they are there; one whose noise is fresh is named "vote".
        control: name of the control; without it the list is empty.
        victims: attack -> name of the classifier that it aims at, "" for the path without sampling.

    Returns:
        `comparison.compare` of each, with "first" and "second", the names; "tries", how many answers with noise of
        their own an image got; "spared", whether no attack aims at the first itself; and
        "matched_here", the comparison at exactly the first's coverage of these images.
    """
    rows = []
    for name in names:
        if name in answers and control in answers:
            pair = [attacks_of(answers[each], groups) for each in (name, control)]
            tries = len(pair[0]) if name == "vote" else 1
            # Thresholds that were frozen on other images need not answer equally many of these.
            matched = compare(labels, pair[0], at_coverage_of(*pair))
            spared = name not in victims.values()
            row = {"first": name, "second": control, "tries": tries, "spared": spared, **compare(labels, *pair)}
            rows.append(row | {"matched_here": matched})
    return rows

"""A result as `flss-edge evaluate` writes it, of answers drawn at random: two classifiers, three attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flss_edge.classifiers.answers import Answers
from flss_edge.robustness.metrics import share, summarise, thresholded
from flss_edge.robustness.results import classifier_results, control_results

NUM_IMAGES = 300
GROUPS = {
    "clean": ("clean",),
    "pgd": ("paper",),
    "gama-mt-2": ("paper",),
    "vote-targeted-7": ("adaptive",),
}
STRENGTH = {"clean": 0.0, "pgd": 1.4, "gama-mt-2": 1.6, "vote-targeted-7": 1.9}


def answers(seed: int, top: float, threshold: float, scale: float = 1.0) -> dict[str, Answers]:
    """Answers to images of ten classes, each with its own difficulty; an attack lowers the margin of the true class."""
    draw = np.random.default_rng(seed)
    labels = true_labels()
    margin = np.random.default_rng(7).normal(1.1, 1.0, NUM_IMAGES)
    found = {}
    for name, strength in STRENGTH.items():
        left = margin - scale * strength * draw.uniform(0.5, 1.2, NUM_IMAGES) + draw.normal(0, 0.15, NUM_IMAGES)
        given = np.where(left > 0, labels, (labels + 1 + draw.integers(0, 9, NUM_IMAGES)) % 10)
        scores = top * (0.15 + 0.85 * (1 - np.exp(-1.6 * np.abs(left))))
        scores = np.round(scores) if top > 1 else scores
        found[name] = Answers(given, scores, scores >= threshold)
    return found


def true_labels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 10, NUM_IMAGES)


def curve(value: float, classifier: str, scale: float) -> dict[str, Any]:
    """One row of a sweep."""
    top, threshold = (100.0, 40.0) if classifier == "vote" else (1.0, 0.42)
    return {
        "value": value,
        "classifier": classifier,
        "metrics": summarise(true_labels(), answers(1, top, threshold, scale)),
    }


def sweep(name: str) -> dict[str, Any]:
    values = {
        "epsilon": [level / 255 for level in (0, 1, 2, 4, 8, 16, 32)],
        "num-samples": [1, 3, 10, 30, 100, 300, 1000],
        "noise-scale": [0.5, 1, 2, 3],
    }[name]
    strength = {
        value: 127.5 * value / 8 / 2 if name == "epsilon" else 1 - 0.02 * place for place, value in enumerate(values)
    }
    return {
        "name": name,
        "rows": [curve(value, each, strength[value]) for each in ("vote", "no-sampling") for value in values],
    }


def highest(answers: dict[str, Answers]) -> float:
    """100 votes, or a confidence of 1."""
    return 100.0 if max(float(each.scores.max()) for each in answers.values()) > 1 else 1.0


def result(swept: str = "epsilon") -> dict[str, Any]:
    labels = true_labels()
    vote, plain = answers(1, 100, 40), answers(2, 1.0, 0.42)
    matched = thresholded(plain, 0.43)
    all_answers: Mapping[str, Mapping[str, Answers]] = {
        "vote": vote,
        "no-sampling": plain,
        "no-sampling-matched": matched,
    }
    thresholds = {"vote": 40.0, "no-sampling": 0.42, "no-sampling-matched": 0.43}
    rule = "at most 10 % of all calibration images right and rejected"
    return {
        "schema_version": 1,
        "command": "flss-edge evaluate best.pt --data cifar10.npz --suite paper --suite adaptive --limit 300",
        "artifact": {"checkpoint": "best.pt", "sha256": "ab" * 32},
        "environment": {
            "cpu": "Some CPU",
            "flss_edge": "0.1.0",
            "git_commit": "0" * 40,
            "python": "CPython 3.11.7",
            "packages": {"numpy": "2.4.6", "torch": "2.15.0"},
        },
        "config": {
            "suites": ["paper", "adaptive"],
            "epsilon": 8 / 255,
            "limit": NUM_IMAGES,
            "seed": 0,
            "data": "cifar10.npz:test[:300]",
            "data_sha256": "cd" * 32,
            "calibration": {"data": "cifar10.npz:validation", "n": 1000},
            "budget": 0.1,
        },
        "results": {
            "classifiers": [
                classifier_results(name, thresholds[name], rule, labels, each, GROUPS, plain, highest(each))
                for name, each in all_answers.items()
            ],
            "controls": control_results(labels, all_answers, GROUPS, ["vote"], "no-sampling-matched", {"pgd": ""}),
            "attacks": [
                {
                    "name": name,
                    "groups": list(groups),
                    "epsilon": 8 / 255 if name != "clean" else 0.0,
                    "victim": "vote" if name.startswith("vote") else "",
                    "seconds": 61.5,
                    "images_per_s": 4.88,
                }
                for name, groups in GROUPS.items()
            ],
            "checks": [
                {"name": "gradients", "passed": True, "text": "no image has a gradient of zero", "advice": ""},
                {"name": "more steps", "passed": None, "text": "not compared", "advice": ""},
            ],
            "corruptions": [
                {
                    "classifier": name,
                    "corruption": kind,
                    "severity": severity,
                    "accuracy_0": 0.8 - 0.06 * severity * weight,
                    "accuracy_accepted": 0.9 - 0.04 * severity * weight,
                    "coverage": 0.8 - 0.09 * severity * weight,
                    "n": NUM_IMAGES,
                }
                for name, weight in (("vote", 1.0), ("no-sampling", 1.2))
                for kind in ("bernoulli-noise", "gaussian-noise", "gaussian-blur", "motion-blur", "jpeg", "brightness")
                for severity in range(1, 6)
            ],
            "out_of_distribution": [
                {
                    "classifier": name,
                    "data": "cifar100.npz:test",
                    "inside_accepted": share(230, 300),
                    "outside_accepted": share(accepted, 300),
                    "auroc": 0.71,
                    "auroc_interval": [0.66, 0.76],
                    "threshold": 12.0,
                    "false_positives": share(210, 300),
                    "n": 300,
                }
                for name, accepted in (("vote", 140), ("no-sampling", 151))
            ],
            "persistent": [
                {
                    "classifier": name,
                    "mode": mode,
                    "queries": queries,
                    "fooled": share(base + gain * place, NUM_IMAGES),
                    "n": NUM_IMAGES,
                }
                for name, mode, base, gain in (("vote", "resend", 110, 20), ("deterministic-vote", "jitter", 115, 3))
                for place, queries in enumerate((1, 10, 100))
            ],
            "sweep": sweep(swept),
        },
        "validity": {"valid": True, "flags": []},
    }

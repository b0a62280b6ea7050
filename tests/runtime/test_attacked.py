"""Robust accuracy of an engine beside the reference's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flss_runtime.attacked import AttackedOutputs, compare_attacked
from flss_runtime.comparison import GateOutputs, Outputs
from flss_runtime.errors import DataError

FOR, AGAINST, WEAK = [9, 1], [1, 9], [4, 6]


def made(name: str, votes: Any, adversarial: bool = True) -> AttackedOutputs:
    return AttackedOutputs(name, adversarial, Outputs(np.array(votes)))


def test_the_worst_case_is_taken_image_by_image() -> None:
    labels = np.zeros(4, np.int64)
    reference = [
        made("clean", [FOR, FOR, FOR, AGAINST]),
        made("pgd", [FOR, AGAINST, WEAK, FOR]),
        made("jpeg", [AGAINST] * 4, adversarial=False),
    ]
    found = compare_attacked(labels, reference, reference, min_votes=7)
    assert (found.images, found.reference.correct) == (4, 1)
    assert found.reference.wrongly_accepted == 2  # images 1 and 3; image 2 is rejected
    assert found.candidate == found.reference and (found.lost, found.gained) == (0, 0)
    assert [attack.name for attack in found.attacks] == ["clean", "pgd", "jpeg"] and found.failures == ()
    assert compare_attacked(labels, reference, reference).reference.wrongly_accepted is None


def test_a_cascade_answers_through_its_gate() -> None:
    labels = np.array([0, 0])
    gate = GateOutputs(np.array([0.9, 0.1]), np.array([1, 1]))
    outputs = [AttackedOutputs("clean", True, Outputs(np.array([FOR, FOR]), gate=gate))]
    found = compare_attacked(labels, outputs, outputs, min_votes=7, min_confidence=0.5)
    assert found.reference.correct == 1 and found.reference.wrongly_accepted == 1
    assert compare_attacked(labels, outputs, outputs, min_votes=7).reference.correct == 2


@pytest.mark.parametrize(
    ("lost", "gained", "fails"),
    [
        (0, 0, False),
        (4, 0, False),  # chance gives four of four in one of sixteen
        (5, 0, True),
        (20, 19, False),
        (30, 12, True),
        (0, 30, False),
    ],
)
def test_a_loss_beyond_budget_and_chance_fails(lost: int, gained: int, fails: bool) -> None:
    images = 200
    before, after = np.array([FOR] * images), np.array([FOR] * images)
    after[:lost] = AGAINST
    before[lost : lost + gained] = AGAINST
    labels = np.zeros(images, np.int64)
    found = compare_attacked(labels, [made("clean", before)], [made("clean", after)], budget=0.005)
    assert (found.lost, found.gained) == (lost, gained)
    assert bool(found.failures) is fails
    assert found.attacks[0].class_flips == lost + gained
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["candidate"]["correct"] == images - lost
    if lost > gained:
        assert not compare_attacked(labels, [made("clean", before)], [made("clean", after)], budget=0.2).failures


def test_nothing_adversarial_is_refused() -> None:
    with pytest.raises(DataError, match="no adversarial images"):
        compare_attacked(np.zeros(1, np.int64), [], [])

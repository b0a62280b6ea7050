"""The cascade: whose answer it gives, when, and what an attacker can follow end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote
from flss_runtime.errors import UsageError

from .conftest import DrawsOf, MakeFLSS, MakePlain, coloured_noise

N = 30


@pytest.fixture
def cascade(make_flss: MakeFLSS, make_plain: MakePlain, images: Tensor) -> Cascade:
    """Gate and vote each accept about half of the images."""
    gate, vote = Confidence(make_plain()), Vote(make_flss(), num_samples=N, seed=2)
    gate = gate.with_threshold(float(np.median(gate.answer(images, 0).scores)))
    return Cascade(gate, vote.with_threshold(float(np.median(vote.answer(images, 0).scores)) + 1))


def test_truth_table(cascade: Cascade) -> None:
    images = coloured_noise(60, 1)
    gate, vote, answers = (each.answer(images, 5) for each in (cascade.gate, cascade.vote, cascade))
    with torch.no_grad():
        mean_path = cascade(images).argmax(dim=1).numpy()
    seen = set()
    for row in range(60):
        case = bool(gate.accepted[row]), bool(vote.accepted[row])
        seen.add(case)
        if gate.accepted[row]:  # the mean path's class, whatever the vote says
            expected = mean_path[row], True, N + gate.scores[row]
        else:
            expected = vote.labels[row], vote.accepted[row], vote.scores[row]
        assert (answers.labels[row], answers.accepted[row], answers.scores[row]) == expected, case
    assert len(seen) == 4
    assert (answers.accepted == (answers.scores >= cascade.threshold)).all()
    for other in (vote, gate):  # else the table could not tell whose answer it is
        assert (mean_path != other.labels)[gate.accepted].any()


def test_an_image_has_its_counters_noise_whether_it_is_gated_or_not(cascade: Cascade, images: Tensor) -> None:
    whole = cascade.answer(images, 8)
    for row in range(6):
        assert cascade.answer(images[row : row + 1], 8 + row).scores[0] == pytest.approx(whole.scores[row])


def test_a_new_threshold_is_the_votes(cascade: Cascade, images: Tensor) -> None:
    strict = cascade.with_threshold(N)
    assert strict.threshold == strict.vote.threshold == N
    assert strict.gate.threshold == cascade.gate.threshold
    gated = cascade.gate.answer(images, 0).accepted
    assert strict.answer(images, 0).accepted[gated].all()


class TestSoftScores:
    def test_are_the_mixture(self, cascade: Cascade, images: Tensor, draws_of: DrawsOf) -> None:
        draws = draws_of()
        confidence = cascade.gate(images).softmax(dim=1).max(dim=1).values
        gate = 1 / (1 + torch.exp(-(confidence - cascade.gate.threshold) / cascade.gate_temperature))
        expected = gate[:, None] * cascade(images).softmax(dim=1)
        expected = expected + (1 - gate[:, None]) * cascade.vote.class_scores(images, 10, draws, "x", 0.1)
        torch.testing.assert_close(cascade.class_scores(images, 10, draws, "x", 0.1), expected)

    @pytest.mark.parametrize("part", ["gate", "vote"])
    def test_have_a_gradient_through_each_part(
        self, part: str, cascade: Cascade, images: Tensor, draws_of: DrawsOf
    ) -> None:
        with torch.no_grad():  # the other part says the same of every image
            blind = cascade.vote.network.encoder if part == "gate" else cascade.gate.network
            for parameter in blind.parameters():
                parameter.zero_()
        pixels = images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cascade.class_scores(pixels, 10, draws_of(), "x", 0.5)[:, 0].sum(), pixels)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0

    @torch.no_grad()
    def test_a_hard_gate_is_one_or_the_other(self, cascade: Cascade, images: Tensor, draws_of: DrawsOf) -> None:
        hard = replace(cascade, gate_temperature=1e-6)
        open_gate = hard.gate.answer(images, 0).accepted
        scores = hard.class_scores(images, 10, draws_of(), "x", 0.1)
        shares = hard.vote.class_scores(images, 10, draws_of(), "x", 0.1)
        on_edge = int(np.abs(hard.gate.answer(images, 0).scores - hard.gate.threshold).argmin())
        for row in range(6):
            expected = hard(images)[row].softmax(dim=0) if open_gate[row] else shares[row]
            if row != on_edge:
                torch.testing.assert_close(scores[row], expected)


def test_parts_need_the_same_classes(make_flss: MakeFLSS, make_plain: MakePlain) -> None:
    with pytest.raises(UsageError, match="5 classes and FLSS 4"):
        Cascade(Confidence(make_plain()), Vote(make_flss(num_classes=4)))

"""What every classifier promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge.classifiers.selective import SelectiveClassifier

from .conftest import DrawsOf

NAMES = (
    "vote",
    "vote-fixed",
    "vote-released",
    "mean-softmax",
    "deterministic-vote",
    "no-sampling",
    "pni",
    "pixel-noise-vote",
    "smoothing",
    "cascade",
)


@pytest.fixture(params=NAMES)
def classifier(request: pytest.FixtureRequest, classifiers: dict[str, SelectiveClassifier]) -> SelectiveClassifier:
    return classifiers[request.param]


def test_all_are_here(classifiers: dict[str, SelectiveClassifier]) -> None:
    assert tuple(classifiers) == NAMES


def test_answers_have_their_shapes_and_types(classifier: SelectiveClassifier, images: Tensor) -> None:
    for count in (6, 1):
        answers = classifier.answer(images[:count], 2)
        assert answers.labels.shape == answers.scores.shape == answers.accepted.shape == (count,)
        assert answers.labels.dtype == np.int64 and answers.scores.dtype == np.float64
        assert answers.accepted.dtype == np.bool_
        np.testing.assert_array_equal(answers.accepted, answers.scores >= classifier.threshold)


def test_another_threshold_changes_only_who_is_accepted(classifier: SelectiveClassifier, images: Tensor) -> None:
    before = classifier.answer(images, 2)
    threshold = float(np.sort(before.scores)[3])
    if classifier.name == "cascade":
        threshold = min(threshold, 20.0)  # a gated answer's score is above any number of votes
    after = classifier.with_threshold(threshold).answer(images, 2)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.accepted, before.scores >= threshold)


def test_answers_repeat(classifier: SelectiveClassifier, images: Tensor) -> None:
    first = classifier.answer(images, 7)
    classifier.answer(images, 1000)
    second = copy.deepcopy(classifier).answer(images, 7)
    np.testing.assert_array_equal(second.labels, first.labels)
    np.testing.assert_array_equal(second.scores, first.scores)


def test_the_global_random_state_is_untouched(
    classifier: SelectiveClassifier, images: Tensor, draws_of: DrawsOf
) -> None:
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    classifier.answer(images, 3)
    classifier.sampled_logits(images, 2, draws_of(), "x")
    classifier.class_scores(images, 2, draws_of(), "x", 0.5)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def test_answers_carry_no_gradient_and_leave_the_images(classifier: SelectiveClassifier, images: Tensor) -> None:
    pixels = images.clone().requires_grad_(True)
    classifier.answer(pixels, 0)
    assert pixels.grad is None
    assert torch.equal(pixels.detach(), images)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_soft_scores_are_scores_and_differentiable(
    temperature: float, classifier: SelectiveClassifier, images: Tensor, draws_of: DrawsOf
) -> None:
    pixels = images.clone().requires_grad_(True)
    scores = classifier.class_scores(pixels, 4, draws_of(), "x", temperature)
    assert scores.shape == (6, 5)
    assert ((scores >= 0) & (scores <= 1 + 1e-6)).all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(6))
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), pixels)
    assert torch.isfinite(gradient).all()
    if temperature == 1.0:
        assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_draws_do_not_depend_on_how_the_batch_is_divided(
    classifier: SelectiveClassifier, images: Tensor, draws_of: DrawsOf
) -> None:
    whole = classifier.class_scores(images, 4, draws_of(), "x", 0.5)
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        part = classifier.class_scores(images[start:stop], 4, draws_of(rows=slice(start, stop)), "x", 0.5)
        torch.testing.assert_close(part, whole[start:stop], rtol=1e-4, atol=1e-5)


def test_draws_follow_name_and_step(classifier: SelectiveClassifier, images: Tensor, draws_of: DrawsOf) -> None:
    logits = classifier.sampled_logits(images, 4, draws_of(), "x")
    assert logits.shape[1:] == (6, 5)
    torch.testing.assert_close(classifier.sampled_logits(images, 4, draws_of(), "x"), logits)
    others = [
        classifier.sampled_logits(images, 4, draws_of(), "y"),
        classifier.sampled_logits(images, 4, draws_of(step=1), "x"),
    ]
    chance = classifier.name in ("vote", "mean-softmax", "pni", "pixel-noise-vote", "smoothing", "cascade")
    for other in others:
        assert torch.allclose(other, logits) is not chance


def test_the_path_without_sampling_is_differentiable(classifier: SelectiveClassifier, images: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):  # noise in weights comes from the global generator here
        pixels = images.clone().requires_grad_(True)
        logits = classifier(pixels)
        assert logits.shape == (6, classifier.num_classes)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), pixels)
        assert gradient.abs().max() > 0

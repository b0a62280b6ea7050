"""The FLSS recipes beyond the literal equality of test_update: what `paper` and `plus` change, each alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.checkpoint import load_checkpoint
from flss_edge.losses import kl_between, kl_to_prior
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, ModelConfig, sample_latents
from flss_edge.recipes import recipe_named
from flss_edge.recipes.flss import FLSSConfig, adversarial_loss, attack, clean_loss
from flss_edge.update import Update
from flss_runtime.errors import UsageError

from .small_runs import assert_same_tensors, official_run

MODEL = ModelConfig(num_classes=4, width=4, image_size=16)
PLAIN = FLSSConfig(attack_steps=2)


@pytest.fixture
def model() -> FLSS:
    torch.manual_seed(2)
    return FLSS(MODEL).double()


def minibatch(progress: float = 0.5, size: int = 6) -> Minibatch:
    data = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, 16, 16, generator=data, dtype=torch.float64)
    labels = torch.randint(0, 4, (size,), generator=data)
    draws = Draws(3, 0, size, slice(0, size), torch.device("cpu"), torch.float64)
    return Minibatch(images, labels, draws, progress, nominal=float(size))


def attacked(model: FLSS, config: FLSSConfig, progress: float = 0.5) -> Minibatch:
    return attack(model.eval(), minibatch(progress), config)


def test_paper_is_algorithm_1_read_literally(model: FLSS) -> None:
    """Unit weights, no warm-up, KL(sampled || mean) summed over the classes, one noise vector for attack and KL3."""
    config = replace(recipe_named("paper").config, attack_steps=2)
    batch = attacked(model, config, progress=0.0)
    assert batch.perturbed is not None
    terms = adversarial_loss(model, batch, config)  # in eval mode: the passes below see the same statistics
    noise = batch.draws.normal("attack", MODEL.features)
    mean_c, logvar_c = model.encoder(batch.images)
    mean_a, logvar_a = model.encoder(batch.perturbed)
    sampled = functional.softmax(model.head(sample_latents(mean_a, logvar_a, noise)), dim=1)
    plain = functional.softmax(model.head(mean_a), dim=1)
    expected = {
        "adversarial_cross_entropy": -sampled.log().gather(1, batch.labels[:, None]).mean(),
        "adversarial_kl_prior": kl_to_prior(mean_c, logvar_c, 6),
        "adversarial_kl_between": kl_between(mean_a, logvar_a, mean_c, logvar_c, 6),
        "adversarial_kl_consistency": (sampled * (sampled / plain).log()).sum(dim=1).mean(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert config.awp_gamma == 0.005 and config.awp_start == 0.0
    clean = clean_loss(model, batch, config)
    sampled = functional.softmax(
        model.head(sample_latents(mean_c, logvar_c, batch.draws.normal("clean", MODEL.features))), dim=1
    )
    plain = functional.softmax(model.head(mean_c), dim=1)
    torch.testing.assert_close(
        clean["clean_kl_consistency"], (sampled * (sampled / plain).log()).sum(dim=1).mean(), rtol=1e-9, atol=1e-12
    )


def test_official_reduces_by_classes_as_well(model: FLSS) -> None:
    batch = attacked(model, PLAIN)
    released = adversarial_loss(model, batch, PLAIN)["adversarial_kl_consistency"]
    summed = adversarial_loss(model, batch, replace(PLAIN, consistency_reduction="batchmean"))
    torch.testing.assert_close(4 * released, summed["adversarial_kl_consistency"])


def test_the_attacks_noise_is_one_vector_an_image_and_the_first_losss(model: FLSS) -> None:
    """The attacked images must raise the very loss that is then minimised."""
    config = replace(PLAIN, attack_steps=5)
    batch = attacked(model, config)
    assert batch.perturbed is not None
    distance = (batch.perturbed - batch.images).abs().max()
    assert float(distance) <= 8 / 255 + 1e-12
    before = adversarial_loss(model, replace(batch, perturbed=batch.images), config)["adversarial_cross_entropy"]
    after = adversarial_loss(model, batch, config)["adversarial_cross_entropy"]
    assert after.item() > before.item()


@pytest.mark.parametrize(("progress", "radius"), [(0.0, 0.25), (0.3, 0.625), (0.6, 1.0), (0.9, 1.0)])
def test_the_radius_ascends_and_the_steps_with_it(model: FLSS, progress: float, radius: float) -> None:
    config = replace(PLAIN, epsilon_start=0.25, epsilon_ramp=0.6, attack_steps=8)
    assert config.radius(progress) == pytest.approx(radius)
    batch = attacked(model, config, progress)
    assert batch.perturbed is not None
    distance = (batch.perturbed - batch.images).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(distance, torch.full_like(distance, radius * 8 / 255), rtol=0, atol=1e-9)


def test_the_rejection_term_is_minus_log_of_the_margin_and_attacked(model: FLSS) -> None:
    config = replace(PLAIN, rejection_weight=0.7, rejection_samples=5, attack_steps=5)
    batch = attacked(model, config)
    assert batch.perturbed is not None
    mean, logvar = model.encoder(batch.perturbed)
    numbers = batch.draws.normal("rejection", 5, MODEL.features)
    logits = torch.stack([model.head(sample_latents(mean, logvar, 2.0 * numbers[:, n])) for n in range(5)])
    shares = functional.softmax(logits / 0.5, dim=-1).mean(dim=0)
    own = functional.one_hot(batch.labels, 4).bool()
    margin = shares[own] - shares[~own].reshape(-1, 3).amax(dim=1)
    expected = -0.7 * torch.log((1 + margin) / 2).mean()
    torch.testing.assert_close(adversarial_loss(model, batch, config)["rejection"], expected)
    unaware = attacked(model, replace(config, rejection_weight=0.0))
    assert unaware.perturbed is not None
    assert not torch.equal(unaware.perturbed, batch.perturbed)
    weaker = adversarial_loss(model, replace(batch, perturbed=batch.images), config)["rejection"]
    assert expected.item() > weaker.item()


def test_the_second_view_has_batch_norms_of_its_own(model: FLSS) -> None:
    batch_norm.add_second(model)
    config = replace(PLAIN, view_weight=0.5)
    batch = attacked(model, config)
    assert batch.perturbed_view is not None
    assert not torch.equal(batch.perturbed_view, batch.perturbed)
    model.train()
    first = model.encoder.bn1.running_mean.clone()
    second = model.second_norms[0].running_mean.clone()  # type: ignore[index,union-attr]
    only_view = adversarial_loss(model, batch, config)["view_cross_entropy"]
    assert not torch.equal(model.second_norms[0].running_mean, second)  # type: ignore[index,union-attr]
    moved_with_view = model.encoder.bn1.running_mean.clone()
    only_view.backward()
    assert model.encoder.bn1.weight.grad is None
    assert model.second_norms[0].weight.grad is not None  # type: ignore[index,union-attr]
    model.encoder.bn1.running_mean.copy_(first)
    adversarial_loss(model, batch, PLAIN)
    torch.testing.assert_close(model.encoder.bn1.running_mean, moved_with_view)  # the view left it alone


def updated(model: FLSS, config: FLSSConfig) -> tuple[dict[str, float], float]:
    """One update at three tenths of the training: its terms, and how far the first loss's images were moved."""
    moved: list[Tensor] = []

    def noted(model: FLSS, batch: Minibatch, config: FLSSConfig) -> dict[str, Tensor]:
        assert batch.perturbed is not None
        moved.append((batch.perturbed - batch.images).abs().amax(dim=(1, 2, 3)))
        return adversarial_loss(model, batch, config)

    recipe = replace(recipe_named("official"), config=config, losses=(noted, clean_loss))
    terms = Update(model, torch.optim.SGD(model.parameters(), lr=0.05), recipe)([minibatch(progress=0.3)])
    assert all(math.isfinite(value.item()) for value in terms.values())
    return {name: value.item() for name, value in terms.items()}, float(moved[0].min())


@pytest.mark.parametrize(
    ("setting", "term"), [("view_weight", "view_cross_entropy"), ("rejection_weight", "rejection")]
)
def test_a_term_can_be_added_alone(model: FLSS, setting: str, term: str) -> None:
    """It is the one more term there is, and it trains: the weights end elsewhere."""
    plain = copy.deepcopy(model)
    config = replace(PLAIN, **{setting: 0.5})  # type: ignore[arg-type]
    if config.second_norms:
        batch_norm.add_second(model)
    terms, _ = updated(model, config)
    assert set(terms) - set(updated(plain, PLAIN)[0]) == {term}
    assert not torch.equal(model.encoder.conv1.weight, plain.encoder.conv1.weight)


def test_the_radius_can_ascend_alone(model: FLSS) -> None:
    """Every image reaches the end of the radius, halfway from a quarter to all of it."""
    full = replace(PLAIN, attack_steps=8)
    terms, moved = updated(copy.deepcopy(model), replace(full, epsilon_start=0.25, epsilon_ramp=0.6))
    plain, whole = updated(model, full)
    assert (moved, whole) == (pytest.approx(0.625 * 8 / 255, abs=1e-9), pytest.approx(8 / 255, abs=1e-9))
    assert set(terms) == set(plain)


def test_the_moving_average_can_be_switched_on_alone(tmp_path: Path) -> None:
    """It changes what is saved, and nothing of what is trained."""
    ends, saved = [], []
    for decay in (0.0, 0.9):
        folder = tmp_path / str(decay)
        folder.mkdir()
        trainer = official_run(folder, epochs=1, ema_decay=decay)
        trainer.run()
        ends.append(trainer.network.state_dict())
        saved.append(load_checkpoint(folder / "last.pt").model.state_dict())
    assert_same_tensors(ends[0], ends[1])
    assert_same_tensors(saved[0], ends[0])
    for name, value in saved[1].items():
        if value.is_floating_point():
            assert not torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize(
    "settings",
    [["rejection_samples=0"], ["rejection_temperature=0"], ["epsilon_start=0.5"], ["epsilon_ramp=0"]],
    ids=lambda settings: settings[0],
)
def test_settings_without_meaning_or_effect_are_refused(settings: list[str]) -> None:
    with pytest.raises(UsageError, match=settings[0].partition("=")[0]) as failure:
        recipe_named("plus" if settings == ["epsilon_ramp=0"] else "official").with_settings(settings)
    assert failure.value.fix


def test_plus_without_its_additions_is_official() -> None:
    plus = recipe_named("plus").config
    off = {"ema_decay": 0.0, "epsilon_start": 1.0, "epsilon_ramp": 0.0, "view_weight": 0.0, "rejection_weight": 0.0}
    steps = {"attack_steps": 10, "attack_step_size": 2 / 255}
    assert replace(plus, recipe="official", **off, **steps) == recipe_named("official").config
    assert recipe_named("plus").network == {"activation": "silu"}

"""`--sampling` from end to end: export, calibrate, predict, evaluate, and the checkpoint that must decide the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.bundle import load_bundle
from flss_runtime.sampling import DETERMINISTIC, LATENT, LOGIT

Runner = Callable[..., Any]


@pytest.fixture(scope="module")
def logit_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flss_edge.checkpoint import load_checkpoint
    from flss_export.exporter import export_bundle

    target = tmp_path_factory.mktemp("logit") / "tiny.bundle"
    export_bundle(load_checkpoint(tiny_checkpoint), target, sampling=LOGIT)
    return target


@pytest.fixture
def here_with_bundle(logit_bundle: Path, here: Path) -> Path:
    shutil.copytree(logit_bundle, here / "tiny.bundle")
    return here / "tiny.bundle"


@pytest.mark.parametrize("sampling", [LOGIT, DETERMINISTIC])
def test_calibrate_then_predict_and_evaluate(
    sampling: str, run: Runner, here_with_bundle: Path, labelled_pictures: Path
) -> None:
    bundle, asked = here_with_bundle, ("--sampling", sampling)
    refused = run("predict", bundle, labelled_pictures, *asked)
    assert refused.code == 3 and f"--sampling {sampling}" in refused.err
    told = run("calibrate", bundle, "--data", labelled_pictures, "--split", "test", *asked, "--format", "json")
    assert told.code == 0 and f"for {sampling} sampling" in told.err
    (entry,) = json.loads(told.out)["results"]
    assert entry["mode"] == sampling and (entry["seed"] is None) == (sampling == DETERMINISTIC)
    assert load_bundle(bundle).policy(sampling=sampling).min_votes == entry["min_votes"]
    assert run("predict", bundle, labelled_pictures).code == 3  # latent sampling has no threshold of its own

    first, again = (json.loads(run("predict", bundle, labelled_pictures, *asked, "--format", "json").out) for _ in "12")
    assert first["config"]["sampling"] == sampling
    same = [row["votes"] for row in first["results"]] == [row["votes"] for row in again["results"]]
    assert same == (sampling == DETERMINISTIC)
    measured = json.loads(
        run("evaluate", bundle, "--data", labelled_pictures, "--no-checks", *asked, "--format", "json").out
    )
    name = "deterministic-vote" if sampling == DETERMINISTIC else "vote"
    assert [row["name"] for row in measured["results"]["classifiers"]] == [name]
    assert sampling in run("inspect", bundle).out


def test_a_checkpoint_votes_as_its_bundle(tmp_path: Path) -> None:
    """Label and votes of every image: torch's deterministic vote and the bundle's on ONNX Runtime."""
    import numpy as np
    import torch

    from flss_edge.augment import to_float
    from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from flss_edge.classifiers.deterministic import DeterministicVote
    from flss_edge.model import FLSS, ModelConfig
    from flss_export.exporter import export_bundle
    from flss_runtime.decision import SmoothingPolicy
    from flss_runtime.opening import open_classifier

    torch.manual_seed(0)
    network = FLSS(ModelConfig(5, width=4)).eval()
    with torch.no_grad():
        network.encoder.mean.weight.mul_(100)  # else the votes of an untrained network hardly depend on the image
        network.encoder.logvar.bias.fill_(-4)
        network.head[0].bias.zero_()
    names = ("cat", "dog", "fox", "hen", "owl")
    save_checkpoint(tmp_path / "five.pt", Checkpoint(network, names))
    bundle = export_bundle(load_checkpoint(tmp_path / "five.pt"), tmp_path / "five.bundle", sampling=LOGIT)
    rng = np.random.default_rng(0)
    # Different contrasts and colours: pure noise looks all alike to it.
    scale, shift = rng.uniform(0.1, 1, (40, 1, 1, 1)), rng.uniform(0, 150, (40, 1, 1, 3))
    images = (rng.integers(0, 105, (40, 32, 32, 3)) * scale + shift).astype(np.uint8)
    with open_classifier(bundle, policy=SmoothingPolicy(), sampling=DETERMINISTIC, threads=1) as opened:
        decisions = opened.classify(images)
    answers = DeterministicVote(network).answer(to_float(torch.from_numpy(images).permute(0, 3, 1, 2)), 0)
    votes = np.array([decision.votes for decision in decisions])
    assert len(set(votes.tolist())) > 5
    assert (
        np.abs(votes - answers.scores).max() <= 1 and (votes == answers.scores).mean() > 0.9
    )  # rounding, as in verify
    labels = np.array([decision.top_label for decision in decisions])
    assert (labels == answers.labels).mean() > 0.95 and len(set(labels.tolist())) > 1


def test_what_makes_no_sense_is_refused(run: Runner, here_with_bundle: Path, labelled_pictures: Path) -> None:
    bundle = here_with_bundle
    assert run("predict", bundle, labelled_pictures, "--sampling", "sobol").code == 2
    assert (
        run("calibrate", bundle, "--data", labelled_pictures, "--split", "test", "--sampling", DETERMINISTIC).code == 0
    )
    seeded = run("predict", bundle, labelled_pictures, "--sampling", DETERMINISTIC, "--seed", "1")
    assert seeded.code == 2 and "no noise" in seeded.err


def test_a_bundle_without_the_graph_says_how_to_get_it(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    refused = run("calibrate", bundle, "--data", labelled_pictures, "--split", "test", "--sampling", LOGIT)
    assert refused.code == 3 and "--sampling logit" in refused.err


def test_a_checkpoint_has_no_sampling(run: Runner, tiny_checkpoint: Path, labelled_pictures: Path) -> None:
    refused = run("evaluate", tiny_checkpoint, "--data", labelled_pictures, "--sampling", LOGIT)
    assert refused.code == 2 and "deterministic-vote" in refused.err
    assert LATENT == "latent"

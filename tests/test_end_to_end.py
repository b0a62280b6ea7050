"""The way a user goes, once and small: a folder of pictures, train, export, verify, calibrate, predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime import open_classifier
from flss_runtime.noise import SeededNoise


def test_from_pictures_to_decisions(tmp_path: Path, labelled_pictures: Path, run: Callable[..., Any]) -> None:
    runs, bundle = tmp_path / "runs", tmp_path / "colours.bundle"
    size = ("--image-size", 32)
    settings = ("--set", "batch_size=12", "--set", "peak_lr=0.01", "--set", "attack_steps=1", "--set", "crop_padding=0")
    training = run("train", "--data", labelled_pictures, *size, "--width", 8, "--epochs", 3, *settings, "-o", runs)
    assert training.code == 0, training.err
    assert training.out.strip() == str(runs / "best.pt")

    # Trained and calibrated on parts of the same few pictures: the report has to say so.
    attacks = ("--suite", "pgd-20", "--calibration", labelled_pictures, "--budget", 0.2, "--no-checks")
    evaluation = run("evaluate", runs / "best.pt", "--data", labelled_pictures, *attacks, "--format", "json")
    assert evaluation.code == 0, evaluation.err
    (figures,) = json.loads(evaluation.out)["results"]["classifiers"][0]["groups"].values()
    assert figures["nat_ns"]["share"] > 0.9, "three plain colours are easily told apart"

    exported = run("export", runs / "best.pt", "-o", bundle, "--data", labelled_pictures)
    assert exported.code == 0, exported.err
    verified = run("verify", bundle)
    assert verified.code == 1 and "60 images" in verified.err, "too few to show that at most 0.5 % of decisions change"
    assert run("verify", bundle, "--budget", 0.05).code == 0
    uncalibrated = run("predict", bundle, labelled_pictures / "cat")
    assert (uncalibrated.code, "flss-edge calibrate" in uncalibrated.err) == (3, True)
    calibrated = run("calibrate", bundle, "--data", labelled_pictures, "--split", "test")
    assert calibrated.code == 0, calibrated.err

    predicted = run("predict", bundle, labelled_pictures / "dog", "--seed", 5, "--format", "json")
    assert predicted.code == 0, predicted.err
    rows = json.loads(predicted.out)["results"]
    assert {row["decision"] for row in rows} <= {"dog", "rejected"}
    with open_classifier(bundle, noise=SeededNoise(5)) as classifier:
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[..., 1] = 160
        decision = classifier.classify(frame)[0]
        assert classifier.class_names[decision.top_label or 0] == "dog"
        assert decision.counter == 0
        assert classifier.classify(np.zeros((5, 5)))[0].status == "invalid_input"

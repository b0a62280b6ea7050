"""The pictures of an evaluation hold its numbers, are written in every format and refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_edge.classifiers.answers import Answers
from flss_edge.robustness.gallery import KINDS, examples_of, plot_gallery
from flss_edge.robustness.plots import draw_all, pictures_of
from flss_runtime.errors import OutputError, UsageError

from .made_up import result

pytest.importorskip("matplotlib", reason="needs the extra plot")

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
NAMES = ("risk-coverage", "scores", "corruptions", "sweep-epsilon")


def figure_of(made_up: dict[str, Any], name: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    pictures_of(made_up)[name](figure)
    return figure


def has_line(axes: Any, x: list[float], y: list[float]) -> bool:
    drawn = [np.array(line.get_xydata(), np.float64) for line in axes.lines]
    wanted = np.stack([x, y], axis=1).astype(np.float64)
    return any(line.shape == wanted.shape and np.allclose(line, wanted, equal_nan=True) for line in drawn)


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_every_picture_is_written(tmp_path: Path, suffix: str) -> None:
    written = draw_all(result(), tmp_path / "plots", suffix)
    assert [path.name for path in written] == [f"{name}{suffix}" for name in NAMES]
    assert all(path.read_bytes().startswith(SIGNATURES[suffix]) for path in written)


def test_an_unknown_format_and_an_existing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot draw a \.jpeg"):
        draw_all(result(), tmp_path, ".jpeg")
    (tmp_path / "risk-coverage.svg").touch()
    with pytest.raises(OutputError):
        draw_all(result(), tmp_path, ".svg", overwrite=False)


def test_only_what_was_measured_is_drawn() -> None:
    made_up = result()
    for name in ("corruptions", "sweep"):
        del made_up["results"][name]
    for each in made_up["results"]["classifiers"]:
        del each["histogram"]
    assert list(pictures_of(made_up)) == ["risk-coverage"]
    assert pictures_of({"results": {}}) == {}


def test_the_risk_coverage_picture_holds_both_curves_and_the_thresholds_in_use() -> None:
    made_up = result()
    clean, attacked, *_, fc = figure_of(made_up, "risk-coverage").axes
    vote = made_up["results"]["classifiers"][0]
    curve = {key: [100 * value for value in vote["risk_coverage"][key] or ()] for key in ("coverage", "risk", "fc")}
    assert has_line(clean, curve["coverage"], curve["risk"])
    assert has_line(fc, curve["coverage"], curve["fc"])
    assert {line.get_linestyle() for line in clean.lines} == {"-", "None"}
    assert {line.get_linestyle() for line in attacked.lines} == {"--", "None"}
    here = vote["groups"]["everything"]
    place = [100 * here["coverage"]["share"]]
    assert has_line(clean, place, [100 - 100 * here["nat_10"]["share"]])
    assert has_line(attacked, place, [100 - 100 * here["adv_10"]["share"]])
    # The control has the curve of the path without sampling, so two curves and three marks.
    assert len(clean.lines) == 5


def test_a_classifier_that_rejects_everything_is_drawn_without_its_undefined_points() -> None:
    made_up = result()
    for each in made_up["results"]["classifiers"]:
        each["groups"] = {"everything": {**each["groups"]["everything"], "nat_10": None, "adv_10": None}}
        each["risk_coverage"]["attacked_risk"] = [None] * len(each["risk_coverage"]["coverage"])
    figure_of(made_up, "risk-coverage").canvas.draw()


@pytest.mark.parametrize(("name", "factor"), [("epsilon", 255), ("num-samples", 1), ("noise-scale", 1)])
def test_a_sweep_holds_every_figure_over_its_setting(name: str, factor: int) -> None:
    made_up = result(name)
    accuracy, accepted, fw, fc = figure_of(made_up, f"sweep-{name}").axes
    rows = [row for row in made_up["results"]["sweep"]["rows"] if row["classifier"] == "no-sampling"]
    x = [factor * row["value"] for row in rows]

    def series(key: str) -> list[float]:
        return [100 * row["metrics"][key]["share"] for row in rows]

    for axes, key in ((accuracy, "nat_10"), (accuracy, "adv_10"), (accepted, "coverage"), (fw, "fw"), (fc, "fc")):
        assert has_line(axes, x, series(key))
    assert has_line(accepted, x, [100 - value for value in series("mpr")])
    band = fw.collections[1].get_paths()[0].vertices[:, 1]
    bounds = [100 * bound for row in rows for bound in row["metrics"]["fw"]["interval"]]
    assert (band.min(), band.max()) == pytest.approx((min(bounds), max(bounds)))
    assert [label.get_text() for label in fc.get_xticklabels()] == [f"{value:.4g}" for value in x]
    assert fc.get_xscale() == {"epsilon": "symlog", "num-samples": "log", "noise-scale": "linear"}[name]


def test_the_scores_hold_every_image_and_the_threshold() -> None:
    made_up = result()
    clean, *_ = figure_of(made_up, "scores").axes
    vote = made_up["results"]["classifiers"][0]
    right, wrong = (vote["histogram"]["clean"][key] for key in ("correct", "wrong"))
    assert [bar.get_height() for bar in clean.patches] == [*right, *wrong]
    assert [bar.get_y() for bar in clean.patches][len(right) :] == right  # wrong ones stand on the right ones
    assert sum(bar.get_height() for bar in clean.patches) == 300
    assert clean.lines[0].get_xdata()[0] == vote["threshold"]


def test_more_classifiers_than_fit_beside_each_other() -> None:
    made_up = result()
    made_up["results"]["classifiers"] *= 2
    axes = figure_of(made_up, "scores").axes
    assert sum(each.get_visible() for each in axes) == 12


def test_corruptions_hold_accuracy_and_coverage() -> None:
    made_up = result()
    axes = figure_of(made_up, "corruptions").axes
    assert len(axes) == 12
    rows = [row for row in made_up["results"]["corruptions"] if row["classifier"] == "vote"][:5]
    assert axes[0].get_title() == "bernoulli noise"
    assert has_line(axes[0], list(range(1, 6)), [100 * row["accuracy_accepted"] for row in rows])
    assert has_line(axes[6], list(range(1, 6)), [100 * row["coverage"] for row in rows])


def gallery() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Answers, Answers]]:
    draw = np.random.default_rng(0)
    images = draw.random((6, 8, 8, 3)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1])
    clean = Answers(labels.copy(), np.full(6, 90.0), np.ones(6, np.bool_))
    clean.labels[4] = 1
    votes = np.array([80.0, 20, 70, 60, 75, 30])
    attacked = Answers(np.array([0, 0, 1, 1, 1, 1]), votes, votes >= 40)
    return images, np.clip(images + 0.03, 0, 1), labels, (clean, attacked)


def test_examples_of_every_outcome_are_chosen_those_that_the_attack_broke_first() -> None:
    images, attacked, labels, answers = gallery()
    chosen = examples_of(images, attacked, labels, answers, ("cat", "dog"), each=1)
    assert [example.after.kind for example in chosen] == list(KINDS)
    assert [example.label for example in chosen] == ["cat", "dog", "cat"]
    # Images 2 and 4 are both accepted and wrong, but only 2 was right before.
    assert np.array_equal(chosen[2].clean, images[2])
    assert (chosen[2].before.kind, chosen[2].after.label, chosen[2].after.score) == (KINDS[0], "dog", "70 votes")
    assert len(examples_of(images, attacked, labels, answers, ("cat", "dog"), each=5)) == 6


def test_a_gallery_is_written_and_refused_with_a_remedy(tmp_path: Path) -> None:
    images, attacked, labels, answers = gallery()
    examples = examples_of(images, attacked, labels, answers, ("cat", "dog"))
    plot_gallery(examples, tmp_path / "gallery.svg", title="vote under an attack")
    text = (tmp_path / "gallery.svg").read_text(encoding="utf-8")
    for words in ("vote under an attack", "true: dog", "20 votes", "rejected", "accepted and wrong", "difference x 10"):
        assert f"<!-- {words}" in text or words in text
    with pytest.raises(UsageError, match=r"\.bmp"):
        plot_gallery(examples, tmp_path / "gallery.bmp")
    with pytest.raises(UsageError, match="no example"):
        plot_gallery([], tmp_path / "gallery.svg")

"""Reports say what their numbers say: warnings first, published rows only beside the paper's own suite."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flss_edge.classifiers.answers import Answers
from flss_edge.cli.output import Document, Format, _render
from flss_edge.robustness.comparison import paired
from flss_edge.robustness.plain_words import control, percent, with_interval
from flss_edge.robustness.report import COLUMNS, markdown, notes, table_rows
from flss_edge.robustness.results import control_results

from .made_up import result


@pytest.fixture
def made_up() -> dict[str, Any]:
    return result()


def section(text: str, heading: str) -> str:
    """The part of a report below a heading, up to the next of the same depth."""
    depth = heading.split()[0]
    _, _, after = text.partition(f"\n{heading}")
    return after.partition(f"\n{depth} ")[0]


def cells(text: str, first: str) -> list[str]:
    """The cells of the first table row that begins so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_of_a_suite_has_our_figures_and_the_published_ones(made_up: dict[str, Any]) -> None:
    text = section(markdown(made_up), "## Suite `paper`")
    figures = made_up["results"]["classifiers"][0]["groups"]["paper"]
    assert cells(text, "vote")[6:8] == [percent(figures["adv_10"]["share"]), percent(figures["fc"]["share"])]
    assert cells(text, "*published:* FLSS, noise scale 2 (vote)")[7:10] == ["43.16", "33.69", "47.42"]
    assert "not measured here" in text
    assert "pgd, gama-mt-2" in text
    assert with_interval(figures["one_minus_fw"]) in text


def test_published_rows_stand_beside_nothing_else(made_up: dict[str, Any]) -> None:
    assert "published" not in section(markdown(made_up), "## Suite `adaptive`")
    made_up["config"]["data"] = "parts:test"
    assert "published" not in markdown(made_up)
    assert not any("published" in row["classifier"] for row in table_rows(made_up))


def test_terminal_rows_are_in_percent_and_can_be_printed(made_up: dict[str, Any]) -> None:
    rows = table_rows(made_up)
    assert all(set(row) <= set(COLUMNS) for row in rows)
    assert [row["classifier"] for row in rows if row["group"] == "paper"][2:4] == [
        "no-sampling-matched",
        "published: PGD-AT",
    ]
    share = made_up["results"]["classifiers"][0]["groups"]["adaptive"]["fw"]["share"]
    assert next(row for row in rows if row["group"] == "adaptive")["fw"] == pytest.approx(100 * share, abs=0.01)
    printed = _render(Document("evaluate", COLUMNS, rows, notes=notes(made_up)), Format.table, False, "utf-8")
    assert "no-sampling-matched" in printed
    assert "43.16" in printed


def test_what_failed_comes_first(made_up: dict[str, Any]) -> None:
    assert "passed, none failed, 1 gave no verdict" in markdown(made_up).partition("\n## ")[0]
    made_up["results"]["checks"].append(
        {"name": "planted examples", "passed": False, "text": "3 of 20 found", "advice": "Attack with more steps."}
    )
    made_up["validity"] = {"valid": False, "flags": [{"name": "seen", "detail": "12 images were calibrated on"}]}
    lines = [line for line in markdown(made_up).splitlines() if line]
    assert lines[1] == "## Read this first"
    assert "12 images were calibrated on" in lines[3]
    assert "3 of 20 found Attack with more steps." in lines[4]
    assert [note.startswith("WARNING") for note in notes(made_up)] == [True, True, False]


def test_an_evaluation_without_checks_says_so(made_up: dict[str, Any]) -> None:
    del made_up["results"]["checks"]
    assert "No sanity checks were run" in markdown(made_up)


def test_the_origin_of_the_figures_is_stated(made_up: dict[str, Any]) -> None:
    head = markdown(made_up).partition("\n## ")[0]
    for fact in ("n 300", "cifar10.npz:test[:300]", "8/255", "seed 0", "Some CPU", "torch 2.15.0", "0" * 40):
        assert fact in head
    assert "flss-edge evaluate best.pt" in head
    assert "frozen beforehand on: data cifar10.npz:validation, n 1000, budget 0.1" in head


def test_every_section_of_a_full_result(made_up: dict[str, Any]) -> None:
    text = markdown(made_up)
    found = made_up["results"]
    each = section(text, "## Each attack alone")
    fw = found["classifiers"][0]["attacks"]["vote-targeted-7"]["fw"]
    assert cells(each, "vote-targeted-7")[1:3] == ["vote", "8/255"]
    assert cells(each, "vote-targeted-7")[5] == percent(fw)
    assert cells(each, "pgd")[1] == "no sampling"
    assert cells(section(text, "## An attacker who asks again"), "vote")[2:] == [
        with_interval(row["fooled"]) for row in found["persistent"][:3]
    ]
    assert cells(section(text, "## Random corruption"), "no-sampling")[2] == "85.2 (69.2)"
    assert cells(section(text, "## Images of other classes"), "vote")[-1] == "0.710"
    assert cells(section(text, "## Sweep over epsilon"), "16/255")[1] == "vote"
    area = found["classifiers"][0]["risk_coverage"]["attacked_area"]
    assert cells(section(text, "## Area under"), "vote")[-1] == f"{area:.4f}"
    assert cells(section(text, "## What the attacks cost"), "pgd")[2:] == ["61.5", "4.88"]
    assert "clean" not in section(text, "## What the attacks cost")
    assert json.loads(section(text, "## Settings").partition("```json")[2].partition("```")[0]) == made_up["config"]


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        ("controls", "In plain words"),
        ("attacks", "cost"),
        ("corruptions", "Random corruption"),
        ("out_of_distribution", "other classes"),
        ("persistent", "asks again"),
        ("sweep", "Sweep"),
    ],
)
def test_what_was_not_measured_is_absent(made_up: dict[str, Any], missing: str, heading: str) -> None:
    assert heading in markdown(made_up)
    del made_up["results"][missing]
    assert heading not in markdown(made_up)


def test_a_result_of_nothing_is_still_a_report() -> None:
    assert markdown({"results": {}}).startswith("# Robustness")
    assert table_rows({"results": {}}) == []


def test_clean_images_alone_are_no_suite(made_up: dict[str, Any]) -> None:
    for each in made_up["results"]["classifiers"]:
        each["groups"] = {"everything": {**each["groups"]["everything"], "attacks": ["clean"]}}
    assert "## Clean images" in markdown(made_up)
    assert {row["group"] for row in table_rows(made_up)} == {"none"}


def test_figures_as_the_released_scripts_reject_have_their_own_row(made_up: dict[str, Any]) -> None:
    vote = made_up["results"]["classifiers"][0]
    vote["official"] = {"paper": {**vote["groups"]["paper"], "adv_10": None}}
    text = section(markdown(made_up), "## Suite `paper`")
    assert cells(text, "vote, as the released scripts reject")[6] == "-"


def test_a_bar_in_a_name_does_not_break_the_table(made_up: dict[str, Any]) -> None:
    made_up["results"]["checks"][0]["text"] = "a|b"
    assert "a\\|b" in markdown(made_up)


def compared(fc: tuple[int, int], fw: tuple[int, int], coverage: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """A comparison on 300 images: how many only the first and only the second has."""

    def pair(only_first: int, only_second: int) -> dict[str, Any]:
        first, second = np.zeros((2, 300), np.bool_)
        first[:only_first] = True
        second[only_first : only_first + only_second] = True
        return paired(first, second)

    names = {"first": "vote", "second": "control", "n": 300}
    return {**names, "coverage": pair(*coverage), "fc": pair(*fc), "fw": pair(*fw)}


@pytest.mark.parametrize(
    ("fc", "fw", "verdict"),
    [
        ((30, 2), (5, 5), "**vote beats control**"),
        ((5, 5), (2, 30), "**vote beats control**"),
        ((2, 30), (30, 2), "**vote does worse than control**"),
        ((5, 5), (30, 2), "**vote does worse than control**"),
        ((30, 2), (30, 2), "**vote trades**"),
        ((6, 4), (4, 6), "**no difference can be shown**"),
    ],
)
def test_the_verdict_follows_the_intervals(fc: tuple[int, int], fw: tuple[int, int], verdict: str) -> None:
    text = control(compared(fc, fw))
    assert verdict in text
    assert text.count("**vote ") + text.count("**no difference") == 1
    assert "not quite matched" not in text


def test_the_verdict_quotes_its_numbers() -> None:
    text = control(compared((30, 3), (5, 5)))
    assert "10.0 % against 1.0 %, a difference of +9.0 points" in text


def test_coverages_that_differ_are_pointed_out() -> None:
    assert "differ by 5.0 points" in control(compared((5, 5), (5, 5), coverage=(20, 5)))


def test_a_comparison_matched_on_these_images_decides() -> None:
    frozen = compared((30, 2), (5, 5), coverage=(20, 5))
    text = control({**frozen, "matched_here": compared((5, 5), (30, 2))})
    assert "**vote does worse than control**" in text
    assert "threshold moved until both accept alike" in text
    assert "not quite matched" not in text


def test_what_a_comparison_hides_is_said() -> None:
    plain = control(compared((30, 2), (5, 5)))
    assert "chances" not in plain and "transfer" not in plain
    assert "17 chances" in control({**compared((30, 2), (5, 5)), "tries": 17})
    assert "--against vote" in control({**compared((30, 2), (5, 5)), "spared": True})


def test_a_classifier_that_no_adaptive_attack_aims_at_is_spared() -> None:
    labels, one = np.zeros(4, np.int64), Answers(np.zeros(4, np.int64), np.ones(4), np.ones(4, np.bool_))
    answers = {name: {"clean": one, "a": one} for name in ("vote", "vote-fixed", "control")}
    names, groups = ("vote", "vote-fixed", "absent"), {"clean": ["clean"], "a": ["adaptive"]}
    found = control_results(labels, answers, groups, names, "control", {"clean": "", "a": "vote"})
    assert [(row["first"], row["tries"], row["spared"]) for row in found] == [
        ("vote", 2, False),
        ("vote-fixed", 1, True),
    ]
    unaimed = control_results(labels, answers, groups, names, "control", {"clean": "", "a": ""})
    assert all(row["spared"] for row in unaimed), "attacks on the path without sampling reach a vote by transfer alone"


def test_a_spared_classifier_only_looks_better() -> None:
    text = control({**compared((30, 2), (5, 5)), "spared": True})
    assert "**vote looks better than control**" in text and "beats" not in text

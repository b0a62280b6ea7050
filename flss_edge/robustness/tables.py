"""The parts of a report that are one table each; what a result is: `flss_edge.robustness.report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flss_edge.classifiers.answers import CLEAN
from flss_edge.robustness.plain_words import percent, radius, with_interval

Lines = Iterator[str]

# The paper's columns, in its order.
FIGURES = {
    "nat_ns": "nat NS",
    "nat_0": "nat 0 %",
    "nat_10": "nat 10 %",
    "adv_ns": "adv NS",
    "adv_0": "adv 0 %",
    "adv_10": "adv 10 %",
    "fc": "FC",
    "fw": "FW",
    "mpr": "MPR",
}
# Ours, with intervals.
STRICTER = {
    "coverage": "coverage (clean)",
    "fc": "FC = strict robust accuracy",
    "one_minus_fw": "1 - FW",
    "robust_with_detection": "robust accuracy with detection",
    "adv_10": "adv 10 %",
}


def checks(result: Mapping[str, Any]) -> Lines:
    """Yield every check with its verdict."""
    if found := result["results"].get("checks"):
        verdicts = {True: "passed", False: "**FAILED**", None: "no verdict"}
        yield from ("## Sanity checks", "")
        rows = [[one["name"], verdicts[one["passed"]], one["text"]] for one in found]
        yield from table(["check", "verdict", "what it saw"], rows)


def areas(result: Mapping[str, Any]) -> Lines:
    """Yield the areas under the risk-coverage curves."""
    rows = [
        [each["name"], f"{each['risk_coverage']['area']:.4f}", f"{each['risk_coverage']['attacked_area']:.4f}"]
        for each in result["results"].get("classifiers", [])
        if "risk_coverage" in each
    ]
    if rows:
        yield from ("## Area under the risk-coverage curve", "")
        yield from ("Mean share of wrong among accepted answers, over all thresholds; lower is better.", "")
        yield from table(["classifier", "clean", "worst case"], rows)


def attacks(result: Mapping[str, Any]) -> Lines:
    """Yield a table a classifier: what each attack alone does to it."""
    classifiers = result["results"].get("classifiers", [])
    if classifiers:
        yield from ("## Each attack alone", "", "Percent of all images.", "")
    about = {each["name"]: each for each in result["results"].get("attacks", [])}
    for each in classifiers:
        yield from (f"### {each['name']} (threshold {each['threshold']:.6g}; {each['rule']})", "")
        rows = []
        for name, found in each["attacks"].items():
            one = about.get(name, {})
            aimed = [one.get("victim") or "no sampling", radius(one["epsilon"])] if one and name != CLEAN else ["", ""]
            rows.append([name, *aimed, *(percent(found[key], found["n"]) for key in ("accuracy_0", "fc", "fw", "r"))])
        yield from table(["attack", "aimed at", "radius", "correct, nothing rejected", "FC", "FW", "R"], rows)


def costs(result: Mapping[str, Any]) -> Lines:
    """Yield the time that each attack took."""
    if found := result["results"].get("attacks"):
        yield from ("## What the attacks cost", "")
        rows = [
            [one["name"], ", ".join(one["groups"]), _number(one.get("seconds")), _number(one.get("images_per_s"))]
            for one in found
            if one["epsilon"] > 0  # neither the clean images nor random corruptions are attacks
        ]
        yield from table(["attack", "suites", "seconds", "images/s"], rows)


def corruptions(result: Mapping[str, Any]) -> Lines:
    """Yield accuracy and coverage for each kind of corruption and each severity."""
    found = result["results"].get("corruptions")
    if not found:
        return
    severities = sorted({row["severity"] for row in found})
    cells = {(row["classifier"], row["corruption"], row["severity"]): row for row in found}
    yield from (
        "## Random corruption",
        "",
        "Correct among the accepted, and in brackets the share accepted, percent.",
        "",
    )
    rows = []
    for classifier, corruption in dict.fromkeys((row["classifier"], row["corruption"]) for row in found):
        each = [cells.get((classifier, corruption, severity)) for severity in severities]
        shown = ["" if c is None else f"{percent(c['accuracy_accepted'])} ({percent(c['coverage'])})" for c in each]
        rows.append([classifier, corruption, *shown])
    yield from table(["classifier", "corruption", *(f"severity {severity}" for severity in severities)], rows)


def out_of_distribution(result: Mapping[str, Any]) -> Lines:
    """Yield what becomes of images of other classes."""
    if found := result["results"].get("out_of_distribution"):
        yield from ("## Images of other classes", "", "Every one that is accepted gets a wrong answer.", "")
        shares = {
            "outside_accepted": "accepted, %",
            "inside_accepted": "own classes accepted, %",
            "false_positives": "accepted where 95 % of the own are, %",
        }
        rows = [
            [r["classifier"], r["data"], *(with_interval(r.get(key)) for key in shares), f"{r['auroc']:.3f}"]
            for r in found
        ]
        yield from table(["classifier", "images", *shares.values(), "AUROC"], rows)


def persistent(result: Mapping[str, Any]) -> Lines:
    """Yield how often an attacker who asks again gets through."""
    found = result["results"].get("persistent")
    if not found:
        return
    queries = sorted({row["queries"] for row in found})
    cells = {(row["classifier"], row["mode"], row["queries"]): row for row in found}
    yield from (
        "## An attacker who asks again",
        "",
        "Wrongly accepted at least once within so many queries, percent.",
        "",
    )
    rows = []
    for classifier, mode in dict.fromkeys((row["classifier"], row["mode"]) for row in found):
        each = [cells.get((classifier, mode, count)) for count in queries]
        rows.append([classifier, mode, *(with_interval(c and c["fooled"]) for c in each)])
    yield from table(
        ["classifier", "attacker", *("1 query" if count == 1 else f"{count} queries" for count in queries)], rows
    )


def sweep(result: Mapping[str, Any]) -> Lines:
    """Yield the figures for each value of what was swept."""
    if found := result["results"].get("sweep"):
        shown = {key: (STRICTER | FIGURES)[key] for key in ("coverage", "nat_10", "adv_10", "fc", "fw", "mpr")}
        write: Callable[[float], str] = radius if found["name"] == "epsilon" else "{:g}".format
        yield from (f"## Sweep over {found['name']}", "")
        rows = [
            [write(r["value"]), r["classifier"], *(with_interval(r["metrics"][key]) for key in shown)]
            for r in found["rows"]
        ]
        yield from table([found["name"], "classifier", *shown.values()], rows)


def settings(result: Mapping[str, Any]) -> Lines:
    """Yield the whole configuration as JSON."""
    if config := result.get("config"):
        yield from ("## Settings", "", "```json", json.dumps(config, indent=2, default=str), "```", "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Yield a Markdown table and an empty line."""
    for cells in (heading, ["---"] * len(heading), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""

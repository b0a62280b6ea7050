"""One result of `flss-edge evaluate` as Markdown and as rows of a table; NumPy only, and no model is needed.

A result is the JSON that the command writes. Under "results" it may have, all of them optional:

- classifiers: [{"name", "threshold", "rule", "groups": {suite: `metrics.summarise`}, "attacks": `metrics.per_attack`,
  "risk_coverage": `risk_coverage.risk_coverage`, "histogram": `risk_coverage.score_histogram`, and for votes perhaps
  "official": {suite: `metrics.summarise`} as the released scripts reject}];
- controls: `results.control_results`;
- checks: [{"name", "passed" (true, false, or null for no verdict), "text", "advice"}];
- attacks: [{"name", "groups", "epsilon", "victim", "seconds", "images_per_s"}];
- corruptions: [{"classifier", "corruption", "severity", "accuracy_0", "accuracy_accepted", "coverage", "n"}];
- out_of_distribution: [{"classifier", "data", and the fields of `out_of_distribution.OutOfDistribution`}];
- persistent: [{"classifier", "mode", "queries", "fooled": `metrics.share`, "n"}];
- sweep: {"name", "rows": [{"value", "classifier", "metrics": `metrics.summarise`}]}.

Shares are in [0, 1]; here they are printed in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flss_edge.classifiers.answers import CLEAN
from flss_edge.robustness import tables
from flss_edge.robustness.plain_words import control, control_in_short, percent, provenance, warnings, with_interval
from flss_edge.robustness.published import SOURCE, published
from flss_edge.robustness.tables import FIGURES, STRICTER, Lines, table

COLUMNS = {"classifier": "classifier", "group": "attacks", **FIGURES, "coverage": "coverage", "n": "images"}
PUBLISHED_GROUP = "paper"  # the suite of the paper's own attacks; only there the published rows compare
_LEGEND = (
    "Percent. *nat*: clean images; *adv*: the worst case over the attacks, image by image; *NS*: without sampling; "
    "*0 %*: nothing rejected; *10 %*: of what is accepted at the threshold. FC: accepted and correct under every "
    "attack; FW: accepted and wrong under at least one; MPR: rejected under at least one."
)
_PUBLISHED_NOTE = (
    f"Rows marked *published* are not measured here: {SOURCE}. They are of a ResNet-18 on all 10,000 test images, with "
    "thresholds from those images; compare other networks with them in kind only."
)


def markdown(result: Mapping[str, Any], title: str = "Robustness") -> str:
    """Return the report as Markdown.

    Args:
        result: as the module says; what is missing is left out.
        title: heading of the report.
    """
    lines = [f"# {title}", ""]
    for section in _SECTIONS:
        lines += section(result)
    return "\n".join(lines).rstrip() + "\n"


def table_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a classifier and suite in percent, with the keys of COLUMNS, and the published rows after them."""
    rows = []
    for group in _groups(result):
        for name, metrics in _measured(result, group):
            figures = {key: _percent_of(metrics[key]) for key in (*FIGURES, "coverage")}
            attacked = group if len(metrics["attacks"]) > 1 else "none"
            rows.append({"classifier": name, "group": attacked, **figures, "n": metrics["n"]})
        for row in _published(result, group):
            figures = {key: value for key, value in asdict(row).items() if key in FIGURES}
            rows.append({"classifier": f"published: {row.method}", "group": group, **figures, "n": 10_000})
    return rows


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: warnings first, then what the comparison at matched coverage says."""
    compared = result["results"].get("controls", [])
    lines = [f"WARNING {line}" for line in warnings(result)]
    return lines + [control_in_short(each) for each in compared]


def _warnings(result: Mapping[str, Any]) -> Lines:
    if found := warnings(result):
        yield from ("## Read this first", "", "These figures cannot be taken at face value:", "")
        yield from (*(f"- **{line}**" for line in found), "")
    elif not result["results"].get("checks"):
        yield from ("No sanity checks were run with this evaluation.", "")
    else:
        passed = [check["passed"] for check in result["results"]["checks"]]
        silent = f", {passed.count(None)} gave no verdict" if None in passed else ""
        yield from (f"Sanity checks of the attacks: {passed.count(True)} passed, none failed{silent}.", "")


def _provenance(result: Mapping[str, Any]) -> Lines:
    yield from (*(f"- {line}" for line in provenance(result)), "")
    if command := result.get("command"):
        yield from ("```sh", command, "```", "")


def _control(result: Mapping[str, Any]) -> Lines:
    if found := result["results"].get("controls"):
        yield from ("## In plain words: did sampling bring anything?", "")
        for each in found:
            yield from (control(each), "")


def _suites(result: Mapping[str, Any]) -> Lines:
    for group in _groups(result):
        measured = list(_measured(result, group))
        first = measured[0][1]
        names = ", ".join(name for name in first["attacks"] if name != CLEAN)
        yield from (f"## Suite `{group}`" if names else "## Clean images", "")
        yield from (f"n = {first['n']}. Worst case over the clean images and {names or 'nothing else'}.", "")
        if group == _groups(result)[0]:
            yield from (_LEGEND, "")  # once is enough
        rows = [[name, *(_cell(metrics[key], metrics["n"]) for key in FIGURES)] for name, metrics in measured]
        theirs = _published(result, group)
        for row in theirs:
            figures = asdict(row)
            printed = ("-" if figures[key] is None else f"{figures[key]:.2f}" for key in FIGURES)
            rows.append([f"*published:* {row.method} ({row.thresholding})", *printed])
        yield from table(["classifier", *FIGURES.values()], rows)
        if theirs:
            yield from (_PUBLISHED_NOTE, "")
        yield from ("With 95 % intervals (of *adv 10 %* for the denominator that came out):", "")
        rows = [[name, *(with_interval(metrics[key]) for key in STRICTER)] for name, metrics in measured]
        yield from table(["classifier", *STRICTER.values()], rows)


_SECTIONS: Sequence[Callable[[Mapping[str, Any]], Lines]] = (
    _warnings,
    _provenance,
    _control,
    _suites,
    tables.checks,
    tables.attacks,
    tables.areas,
    tables.persistent,
    tables.corruptions,
    tables.out_of_distribution,
    tables.sweep,
    tables.costs,
    tables.settings,
)


def _groups(result: Mapping[str, Any]) -> list[str]:
    """Return the suites of all classifiers, in order of appearance."""
    return list(dict.fromkeys(group for each in result["results"].get("classifiers", []) for group in each["groups"]))


def _measured(result: Mapping[str, Any], group: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and figures of every classifier under a suite."""
    for each in result["results"]["classifiers"]:
        if group in each["groups"]:
            yield each["name"], each["groups"][group]
        if group in each.get("official", {}):
            yield f"{each['name']}, as the released scripts reject", each["official"][group]


def _published(result: Mapping[str, Any], group: str) -> Sequence[Any]:
    return published(str(result.get("config", {}).get("data", ""))) if group == PUBLISHED_GROUP else ()


def _percent_of(found: Mapping[str, Any] | None) -> float | None:
    return None if found is None else round(100 * float(found["share"]), 2)


def _cell(found: Mapping[str, Any] | None, n: int) -> str:
    return "-" if found is None else percent(found["share"], n)

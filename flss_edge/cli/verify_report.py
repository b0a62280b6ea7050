"""The table of `flss-edge verify`: one row a check, with what was found, what is allowed, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flss_edge.cli.output import Cell
from flss_runtime.flips import Verdict, images_needed

if TYPE_CHECKING:
    from flss_runtime.attacked import RobustComparison
    from flss_runtime.comparison import Comparison
    from flss_runtime.equivalence_report import EquivalenceReport

COLUMNS = {
    "name": "replayed",
    "check": "check",
    "images": "images",
    "found": "found",
    "bound": "at most (95 %)",
    "allowed": "allowed",
    "verdict": "verdict",
}
_PLURAL = frozenset({"logits", "gate_logits", "mean_logits"})

Row = dict[str, Cell]


def rows_of(report: EquivalenceReport) -> list[Row]:
    """Return one row a check, in the order of the replays; what is not judged has an empty verdict."""
    rows: list[Row] = []
    further = (report.fused_golden, report.fused, report.logit, report.logit_votes)
    for comparison in (report.golden, report.reference, report.data, *further):
        if comparison is not None:
            rows += _numbers(comparison)
        if comparison is not None and comparison in (report.reference, report.data, report.fused, report.logit_votes):
            rows += _flips(comparison, report)  # the four golden images say nothing about rates
    if report.other_noise is not None:
        rows += _flips(report.other_noise, report)
    if report.adversarial is not None:
        rows += _robust(report.adversarial)
    return rows


def lines_of(report: EquivalenceReport) -> list[str]:
    """Return what the table rests on: engine, precision read back, reference, budget and verdict."""
    facts = report.facts
    ran = ", ".join(f"{role} {precision}" for role, precision in facts["precision"].items())
    needed = images_needed(0, report.budget)
    return [
        f"engine: {facts['engine']} ({facts['library']}) on {facts['device']}",
        f"precision: {report.precision} asked for; read back from the engine: {ran}",
        f"compared with: {report.against}",
        f"budget: {_percent(report.budget)} of decisions may change, shown at 95 %: {needed} images without a change",
        f"verdict: {_shown(report.verdict)}",
    ]


def _numbers(comparison: Comparison) -> Iterator[Row]:
    limits = comparison.tensor_limits
    for key, difference in comparison.tensor_differences.items():
        check = f"{key.replace('_', ' ')} differ{'' if key in _PLURAL else 's'}"
        allowed = limits.get(key)
        kept = None if allowed is None else difference <= allowed
        yield _row(
            comparison.name,
            check,
            comparison.images,
            f"{difference:.2g}",
            allowed="-" if allowed is None else f"{allowed:.2g}",
            verdict="" if kept is None else _shown(Verdict.PASSED if kept else Verdict.FAILED),
        )
    yield from _votes(comparison)


def _votes(comparison: Comparison) -> Iterator[Row]:
    found = {
        "largest vote change": (comparison.largest_vote_change, comparison.limits.vote_change),
        "clear winners changed": (comparison.clear_winner_flips, comparison.limits.clear_flips),
    }
    for check, (count, allowed) in found.items():
        verdict = "" if allowed is None else _shown(Verdict.PASSED if count <= allowed else Verdict.FAILED)
        shown = "-" if allowed is None else str(allowed)
        yield _row(comparison.name, check, comparison.images, str(count), allowed=shown, verdict=verdict)


def _flips(comparison: Comparison, report: EquivalenceReport) -> Iterator[Row]:
    judged = comparison in (report.judged, report.fused, report.logit_votes)
    for test in comparison.flip_tests(report.budget):
        yield _row(
            comparison.name,
            f"{test.kind} flips",
            test.images,
            f"{test.flips} ({_percent(test.rate)})",
            bound=_percent(test.bound),
            allowed=_percent(test.budget) if judged else "-",
            verdict=_shown(test.verdict) if judged else "",
        )


def _robust(found: RobustComparison) -> Iterator[Row]:
    name, images = "adversarial", found.images
    yield _row(
        name,
        "robust accuracy",
        images,
        _beside(found.candidate.correct, found.reference.correct, images),
        allowed=f"{_percent(found.budget)} less",
        verdict=_shown(Verdict.FAILED if found.failures else Verdict.PASSED),
    )
    before, after = found.reference.wrongly_accepted, found.candidate.wrongly_accepted
    if before is not None and after is not None:
        yield _row(name, "wrongly accepted", images, _beside(after, before, images))
    for attack in found.attacks:
        for test in attack.flip_tests():
            flips = f"{test.flips} ({_percent(test.rate)})"
            yield _row(attack.name, f"{test.kind} flips", test.images, flips, bound=_percent(test.bound))


def _row(name: str, check: str, images: int, found: str, **more: Any) -> Row:
    row: Row = {"name": name, "check": check, "images": images, "found": found}
    return {**row, "bound": "-", "allowed": "-", "verdict": "", **more}


def _beside(found: int, reference: int, images: int) -> str:
    return f"{_percent(found / images)} (reference {_percent(reference / images)})"


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _shown(verdict: Verdict) -> str:
    return "FAILED" if verdict is Verdict.FAILED else verdict.value

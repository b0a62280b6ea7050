"""Sentences about an evaluation, made from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MATCHED = 0.01  # clean coverages that differ by more are said to differ


def percent(value: float | None, n: int = 0) -> str:
    """Return a share as percent: one decimal, two from 5,000 images on; "-" for None."""
    return "-" if value is None else f"{100 * value:.{2 if n >= 5000 else 1}f}"


def with_interval(share: Mapping[str, Any] | None) -> str:
    """Return a share with its interval in percent: "43.2 [40.1, 46.3]"; "-" for None."""
    if share is None:
        return "-"
    low, high = (percent(bound, share["n"]) for bound in share["interval"])
    return f"{percent(share['share'], share['n'])} [{low}, {high}]"


def radius(epsilon: float) -> str:
    """Return a radius in the customary units: "8/255"."""
    return f"{255 * epsilon:.4g}/255"


def control(found: Mapping[str, Any]) -> str:
    """Say whether a classifier beats its control at matched coverage.

    Args:
        found: `comparison.compare` with the names, "first" and "second", both at the thresholds that were frozen before
            the attacks; and perhaps under "matched_here" the comparison after the control was given the first's
            coverage on the evaluated images themselves, which then decides.
    """
    first, second = found["first"], found["second"]
    sentences = [
        f"**{first}** accepts {percent(found['coverage']['first'])} % of {found['n']} clean images, its control "
        f"**{second}** {percent(found['coverage']['second'])} %, at the thresholds frozen beforehand. In the worst "
        f"case over all attacks of this evaluation, image by image: {_errors(found)}."
    ]
    if found.get("tries", 1) > 1:
        sentences.append(
            f"The noise of {first} is fresh for each answer, so an image had {found['tries']} chances of a wrong one."
        )
    if found.get("spared"):
        sentences.append(
            f"No attack of this evaluation aims at {first} itself: they reach it by transfer alone, so its figures "
            f"flatter it (--suite adaptive --against {first})."
        )
    decisive = found.get("matched_here", found)
    if decisive is not found:
        shares = f"{percent(decisive['coverage']['first'])} % and {percent(decisive['coverage']['second'])} %"
        sentences.append(f"With the control's threshold moved until both accept alike ({shares}): {_errors(decisive)}.")
    if abs(decisive["coverage"]["difference"]) > MATCHED:
        gap = _points(abs(decisive["coverage"]["difference"]))
        sentences.append(f"Mind that the clean coverages differ by {gap}, so they are not quite matched.")
    return " ".join([*sentences, _verdict(first, second, decisive, bool(found.get("spared")))])


def control_in_short(found: Mapping[str, Any]) -> str:
    """Say the same in one line, as `control` decides it."""
    first, second, decisive = found["first"], found["second"], found.get("matched_here", found)
    differences = []
    for name in ("fw", "fc"):
        low, high = (f"{100 * bound:+.1f}" for bound in decisive[name]["interval"])
        differences.append(f"{name.upper()} {100 * decisive[name]['difference']:+.1f} points [{low}, {high}]")
    accepted = percent(decisive["coverage"]["first"])
    spared = " No attack aims at it." if found.get("spared") else ""
    verdict = _verdict(first, second, decisive, bool(spared)).partition(". ")[0].rstrip(".").replace("**", "")
    return f"{first} against {second}, at {accepted} % of clean images: {', '.join(differences)}. {verdict}.{spared}"


def _errors(found: Mapping[str, Any]) -> str:
    return (
        f"wrongly accepted (FW) {_against(found['fw'])}; accepted and correct under every attack (FC) "
        f"{_against(found['fc'])}"
    )


def _against(pair: Mapping[str, Any]) -> str:
    """Return "34.0 % against 31.0 %, a difference of +3.0 points [+0.5, +5.5]"."""
    low, high = (f"{100 * bound:+.1f}" for bound in pair["interval"])
    return (
        f"{percent(pair['first'])} % against {percent(pair['second'])} %, "
        f"a difference of {100 * pair['difference']:+.1f} points [{low}, {high}]"
    )


def _verdict(first: str, second: str, found: Mapping[str, Any], spared: bool) -> str:
    signs = {_sign(found["fc"]), -_sign(found["fw"])} - {0}  # FC is better high, FW low
    if signs == {1} and spared:
        return f"So **{first} looks better than {second}** at this coverage, which attacks aimed at it may well change."
    if signs == {1}:
        return f"So **{first} beats {second}** at this coverage."
    if signs == {-1}:
        return f"So **{first} does worse than {second}** at this coverage: it costs more than it brings."
    if signs:
        return f"So neither wins: **{first} trades** one kind of error for the other."
    reach = max((pair["interval"][1] - pair["interval"][0]) / 2 for pair in (found["fc"], found["fw"]))
    return (
        f"So **no difference can be shown**: on {found['n']} images, one below about {_points(reach)} would not show. "
        f"That is no evidence that {first} adds anything to {second}."
    )


def _sign(pair: Mapping[str, Any]) -> int:
    """Return 1 or -1 where the whole interval lies on that side of zero, else 0."""
    low, high = pair["interval"]
    return int(low > 0) - int(high < 0)


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def warnings(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures: failed checks and reasons not to quote them.

    Args:
        result: a whole result, see `report`.
    """
    flags = (result.get("validity") or {}).get("flags", [])
    failed = [check for check in result["results"].get("checks", []) if check["passed"] is False]
    lines = [f"{flag['name']}: {flag['detail']}" for flag in flags]
    return lines + [f"{check['name']}: {check['text']} {check.get('advice', '')}".strip() for check in failed]


def provenance(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the figures come from, each fact a line "what: value"; what is not known is left out.

    Args:
        result: a whole result, see `report`.
    """
    config, environment = result.get("config", {}), result.get("environment", {})
    artifact, calibration = result.get("artifact", {}), config.get("calibration") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())
    epsilon, suites = config.get("epsilon"), ", ".join(config.get("suites", []))
    facts = {
        "Model": _listed(artifact),
        "Images": _listed({"n": image_count(result), "data": config.get("data"), "sha256": config.get("data_sha256")}),
        "Attacks": _listed(
            {
                "suites": suites or None,
                "radius": None if epsilon is None else radius(epsilon),
                "seed": config.get("seed"),
            }
        ),
        "Thresholds frozen beforehand on": _listed(
            {**calibration, "budget": config.get("budget")} if calibration else {}
        ),
        "Device": config.get("device") or environment.get("device") or environment.get("cpu"),
        "Versions": _listed({"flss-edge": environment.get("flss_edge"), "Python": environment.get("python")}),
        "Packages": packages,
        "Commit": environment.get("git_commit"),
    }
    for name, value in facts.items():
        if value:
            yield f"{name}: {value}"


def image_count(result: Mapping[str, Any]) -> int | None:
    """Return the number of images that the figures come from; None where nothing was measured."""
    groups = (group for each in result["results"].get("classifiers", []) for group in each["groups"].values())
    return next((group["n"] for group in groups), None)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)

"""The result of `flss-edge replay` as a document: a row a class, and what the rows cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flss_edge.cli.output import Cell, Document
from flss_runtime.decision import SmoothingPolicy, Status

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.replay import ReplaySummary

COLUMNS = {
    "class": "most voted class",
    "frames": "frames",
    "accepted": "accepted",
    "rejected": "rejected",
    "reject_rate": "reject rate",
    "vote_share": "mean vote share",
}
_UNANSWERED = {Status.INVALID_INPUT: "could not be read", Status.FAULT: "made the engine fail"}


@dataclass(frozen=True)
class ReplayReport:
    """What a replay came to.

    Attributes:
        summary: The counts.
        policy: What the frames were decided by.
        drift: As `DriftMonitor.report`.
        damage: What of the recording could not be read.
    """

    summary: ReplaySummary
    policy: SmoothingPolicy
    drift: Mapping[str, Any]
    damage: list[str]


def document_of(bag: Path, report: ReplayReport, bundle: Bundle, config: Mapping[str, Any]) -> Document:
    """Make the document of a replay."""
    policy = report.policy
    results = {**report.summary.to_json(), "drift": dict(report.drift), "damage": report.damage}
    decided_by = {
        "num_samples": policy.num_samples,
        "noise_scale": policy.noise_scale,
        "min_votes": policy.min_votes,
        "min_confidence": policy.min_confidence,
    }
    return Document(
        command="replay",
        columns=COLUMNS,
        rows=[_total(results), *results["classes"]],
        results=results,
        artifact={"bag": str(bag), "bundle": str(bundle.path), "digest": bundle.digest},
        config={**config, **decided_by},
        notes=list(_notes(results, config["topic"])),
    )


def _total(results: Mapping[str, Any]) -> dict[str, Cell]:
    rows = results["classes"]
    votes = sum(row["vote_share"] * row["frames"] for row in rows)
    voted = sum(row["frames"] for row in rows)
    return {
        "class": "all",
        "frames": results["frames"],
        "accepted": sum(row["accepted"] for row in rows),
        "rejected": sum(row["rejected"] for row in rows),
        "reject_rate": results["reject_rate"],
        "vote_share": votes / voted if voted else None,
    }


def _notes(results: Mapping[str, Any], topic: str) -> Iterator[str]:
    yield f"{results['frames']:,} frames of {topic} in {results['duration_s']:.1f} s of recording"
    for status, what in _UNANSWERED.items():
        if count := results["statuses"].get(status.value):
            yield f"{count:,} of them {what}"
    if results["gated"]:
        yield f"{results['gated']:,} of them were answered by the gate"
    latency = results["latency_ms"]["classify"]
    stated = ", ".join(f"{name} {value:.3g}" for name, value in latency.items() if name != "n" and value is not None)
    if stated:
        yield f"time to classify a frame in ms: {stated}"
    drift = results["drift"]
    reason = f" ({drift['reason']})" if drift["reason"] else ""
    yield f"drift: {drift['state']}{reason}"
    yield from results["damage"]

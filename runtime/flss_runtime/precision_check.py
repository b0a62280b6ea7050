"""What a graph was asked to compute in, held against what the engine says it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flss_runtime.engines.precision import NONE, UNKNOWN
from flss_runtime.errors import EngineUnavailable


@dataclass(frozen=True, slots=True)
class PrecisionCheck:
    """What came of it, in words.

    Attributes:
        notes: Graphs that run in another precision than their own.
        doubts: Graphs of which the engine does not say what they run in.
    """

    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def check_precision(facts: Mapping[str, Any], precision: str, *, strict: bool = True) -> PrecisionCheck:
    """Compare what each graph is with what it really runs in.

    Args:
        facts: As `SmoothedClassifier.engine_facts` gives them. Where they do not say which graphs were opened, the head
            is taken for the float32 one.
        precision: That was asked for.
        strict: Whether a difference, or an engine that does not say, is an error.

    Raises:
        EngineUnavailable: They differ or the engine does not say, and `strict` is set.
    """
    notes, doubts = [], []
    opened = {**dict.fromkeys(facts["precision"], precision), "head": "fp32", **facts.get("graphs", {})}
    where = f"{facts['library']} on {facts['device']}"
    for role, found in facts["precision"].items():
        graph = opened[role]
        if found in (graph, NONE):
            continue
        if found == UNKNOWN:
            doubts.append(f"{where} does not say in which precision it runs the {role}")
        else:
            gain = ": no gain here" if (graph, found) == ("fp16", "fp32") else ""
            notes.append(f"{where} runs the {graph} graph of the {role} in {found}{gain}")
    if strict and notes:
        raise EngineUnavailable(
            notes[0], "choose a precision that this engine runs, or add --no-strict to go on all the same"
        )
    if strict and doubts:
        raise EngineUnavailable(
            doubts[0], "choose an engine that says it, or add --no-strict to go on without: no verdict can pass then"
        )
    return PrecisionCheck(tuple(notes), tuple(doubts))

"""Names of the arms of a benchmark: which plain network or which classifier each of them is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flss_runtime.bundle import Bundle
from flss_runtime.decision import check_num_samples
from flss_runtime.errors import UsageError
from flss_runtime.sampling import DETERMINISTIC, LATENT, LOGIT

# The baseline of every overhead: the plain network. The name has nothing to do with the sampling of that name.
BASELINE = "deterministic"
# A second copy of the baseline: its overhead is zero, so what it shows is the error of the benchmark itself.
CONTROL = "control"
SMALLER_AND_LARGER = (1, 10, 100, 1000)

# Suffix of an arm's name -> sampling, and whether encoder and head run as the one fused graph (None: as by default).
_WAYS: dict[str, tuple[str, bool | None]] = {
    "": (LATENT, None),
    "two-graphs": (LATENT, False),
    "fused": (LATENT, True),
    "logit": (LOGIT, None),
    "deterministic": (DETERMINISTIC, None),
}


@dataclass(frozen=True)
class ArmName:
    """What an arm's name says.

    Attributes:
        text: the name itself.
        num_samples: N, None for the plain network.
        sampling: how the votes arise, None for the plain network.
        fused: as for `open_classifier`.
    """

    text: str
    num_samples: int | None
    sampling: str | None
    fused: bool | None


def smoothed_name(num_samples: int, way: str = "") -> str:
    """Return the name of a classifier's arm: 100 -> "n100", 100 and "logit" -> "n100-logit"."""
    return f"n{num_samples}-{way}" if way else f"n{num_samples}"


def parse_arm(text: str) -> ArmName:
    """Read an arm's name.

    Raises:
        UsageError: there is no such arm, or so many samples cannot vote.
    """
    if text in (BASELINE, CONTROL):
        return ArmName(text, None, None, None)
    found = re.fullmatch(r"n([1-9][0-9]{0,17})(?:-([a-z-]+))?", text)
    if found is None or (found[2] or "") not in _WAYS:
        ways = ", ".join(smoothed_name(100, way) for way in _WAYS)
        raise UsageError(f"there is no arm {text!r}", f"arms are {CONTROL}, and of any number of samples: {ways}")
    check_num_samples(int(found[1]))
    sampling, fused = _WAYS[found[2] or ""]
    return ArmName(text, int(found[1]), sampling, fused)


def check_arms(names: Iterable[str]) -> list[str]:
    """Return the arms beside the baseline, each once, in the order given.

    Raises:
        UsageError: no classifier is among them, or there is no such arm.
    """
    wanted = [name for name in dict.fromkeys(names) if parse_arm(name).text != BASELINE]
    if all(name == CONTROL for name in wanted):
        raise UsageError("there is no classifier to compare with the baseline", "name at least one, such as n100")
    return wanted


def require_graphs(bundle: Bundle, names: Iterable[str], precision: str) -> None:
    """Refuse arms that the bundle has no graph for.

    Raises:
        BundleError: it lacks a graph that one of them needs.
        EngineUnavailable: it has the graph in another precision only.
    """
    for arm in map(parse_arm, names):
        if arm.sampling in (LOGIT, DETERMINISTIC):
            bundle.graph("logit", precision)
        elif arm.fused:
            bundle.graph("fused", precision)


def all_arms(bundle: Bundle, num_samples: int, precision: str = "fp32") -> list[str]:
    """Return every arm the bundle's graphs allow: N = 1 to 1000, and at `num_samples` each way to draw."""
    counts = sorted({*SMALLER_AND_LARGER, num_samples})
    ways = ["two-graphs"] if precision in bundle.precisions("fused") else []
    ways += ["logit", "deterministic"] if precision in bundle.precisions("logit") else []
    return [*(smoothed_name(count) for count in counts), *(smoothed_name(num_samples, way) for way in ways)]


def primary_arm(names: Iterable[str], num_samples: int) -> str:
    """Return the arm that the verdict is about: N samples drawn as by default, else the last classifier."""
    arms = [name for name in names if name != CONTROL]
    return smoothed_name(num_samples) if smoothed_name(num_samples) in arms else arms[-1]

"""Suites: which attacks an evaluation runs, with the settings of the literature."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from flss_edge.attacks import Attack, PlannedAttack, Victim
from flss_edge.attacks.adaptive import accepted_and_wrong, forced_rejection, wrong_majority
from flss_edge.attacks.apgd import apgd_ce, apgd_dlr, apgd_targeted
from flss_edge.attacks.confidence import confidence_ce, confidence_wrong
from flss_edge.attacks.fab import fab, fab_targeted
from flss_edge.attacks.features import feature_attack
from flss_edge.attacks.gama import gama_mt, gama_pgd
from flss_edge.attacks.pgd import pgd_attack, pgd_cw, pgd_restarts
from flss_edge.attacks.square import square
from flss_edge.attacks.transfer import transfer
from flss_edge.classifiers.answers import CLEAN
from flss_edge.minibatch import Draws
from flss_runtime.errors import UsageError

RADII = (0.05, 0.1, 0.25, 0.5, 1.0)  # of epsilon, for forced rejections: to reject what is nearly clean costs most


@dataclass(frozen=True)
class Entry:
    """An attack of the path without sampling, with its settings and its rough cost in gradients an image (>= 1)."""

    run: Callable[..., Tensor]
    cost: Callable[[Mapping[str, Any]], int]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _steps(settings: Mapping[str, Any]) -> int:
    return int(settings["steps"])


def _restarted(settings: Mapping[str, Any]) -> int:
    return int(settings["steps"] * settings["restarts"])


ENTRIES: Mapping[str, Entry] = {
    "pgd-20": Entry(pgd_attack, _steps, {"steps": 20}),
    "pgd": Entry(pgd_attack, _steps),
    "apgd-ce": Entry(apgd_ce, _steps),
    "apgd-dlr": Entry(apgd_dlr, _steps),
    "pgd-cw": Entry(pgd_cw, _steps),
    "gama-pgd": Entry(gama_pgd, _steps),
    **{f"gama-mt-{rank}": Entry(gama_mt, _steps, {"rank": rank}) for rank in (2, 3, 4, 5)},
    "gama-mt-untargeted": Entry(gama_mt, _steps, {"rank": None}),
    "fab": Entry(fab, lambda settings: 6 * _restarted(settings)),
    "square": Entry(square, lambda settings: max(1, int(settings["queries"]) // 3)),
    "apgd-t": Entry(apgd_targeted, lambda settings: int(settings["steps"] * settings["targets"])),
    "fab-t": Entry(fab_targeted, lambda settings: 3 * _restarted(settings) * int(settings["targets"]) // 2),
    "pgd-long": Entry(pgd_restarts, _restarted),
    "confidence": Entry(confidence_wrong, lambda settings: int(settings["steps"] * (settings["restarts"] + 1))),
    "confidence-ce": Entry(confidence_ce, _restarted),
}
GOALS_WITH_STARTS = ("accepted-wrong", "wrong-majority")  # of suite all: begun at what the paper's six found, too
PAPER = ("pgd", "apgd-ce", "apgd-dlr", "pgd-cw", "gama-pgd")
GAMA_MT = (*(f"gama-mt-{rank}" for rank in (2, 3, 4, 5)), "gama-mt-untargeted")
SUITES: Mapping[str, tuple[str, ...]] = {
    "quick": ("pgd-20",),
    "paper": (*PAPER, *GAMA_MT),
    "paper-second": ("pgd", "apgd-ce", "apgd-dlr", "fab", "square"),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "adaptive": (),
    "all": tuple(name for name in ENTRIES if name != "pgd-20"),
}
QUICK_ADAPTIVE: Mapping[str, Any] = {"restarts": 1, "steps": 20}
ADAPTIVE: Mapping[str, Callable[..., Tensor]] = {
    "accepted-wrong": accepted_and_wrong,
    "accepted-wrong-margin": functools.partial(accepted_and_wrong, objective="margin"),
    "accepted-wrong-closed": functools.partial(accepted_and_wrong, objective="closed-form"),
    "accepted-wrong-gate": functools.partial(accepted_and_wrong, objective="gate"),
    "wrong-majority": wrong_majority,
    "rejection": forced_rejection,
}
FEATURE_DISTANCES = ("l2", "l1", "cosine")
GAUSSIAN_DISTANCES = ("kl", "l2-both")  # of networks that give a standard deviation too


@dataclass(frozen=True)
class SuiteSettings:
    """What the attacks of a suite need to know.

    Attributes:
        epsilon: radius in pixel units of [0, 1].
        against: name of a selective classifier -> the adaptive attacks on it, keys of ADAPTIVE.
        samples: draws that each gradient of the other attacks averages over; 0 attacks the path without sampling.
        sources: name -> network whose adversarial images are transferred.
        guides: images (G, 3, H, W) and labels (G,) of the feature-level attacks; None leaves them out.
        gaussian: whether the network gives a Gaussian in its latent space.
        changed: attack name -> setting -> value in text, from the command line.
    """

    epsilon: float
    against: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    samples: int = 0
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    guides: tuple[Tensor, Tensor] | None = None
    gaussian: bool = True
    changed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def planned(names: Sequence[str], settings: SuiteSettings) -> list[PlannedAttack]:
    """Return the clean images and every attack of the suites, each once; `names` may be single attacks too.

    Raises:
        UsageError: a name means nothing, a changed setting does not exist, or epsilon is 0.
    """
    check_suites(names, settings.epsilon)
    plan: dict[str, PlannedAttack] = {CLEAN: PlannedAttack(CLEAN, unperturbed, 0.0, groups=(CLEAN,))}
    for name in sorted(names, key=_by_strength):
        for attack in _suite(name, settings):
            known = plan.get(attack.name)
            groups = (*known.groups, name) if known else (name,)
            plan[attack.name] = PlannedAttack(**{**vars(known or attack), "groups": groups})
    _refuse_unused(settings, plan)
    return list(plan.values())


def _by_strength(name: str) -> int:
    """Put `all` first and `quick` last: where two suites have an attack of one name, the first one's settings hold."""
    return {"all": 0, "quick": 2}.get(name, 1)


def check_suites(names: Sequence[str], epsilon: float) -> None:
    """Refuse what can be refused before any image is read; errors as `planned`."""
    if epsilon <= 0:
        raise UsageError("epsilon is 0, so there is nothing to attack", "give --epsilon a radius, for example 8/255")
    for name in names:
        if name not in SUITES and name not in ENTRIES:
            raise UsageError(
                f"there is no suite {name!r}",
                f"use one of {', '.join(SUITES)}, or a single attack: {', '.join(ENTRIES)}",
            )


def unperturbed(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
    """Return the images as they are: the attack that the paper calls clean."""
    return images.clone()


def _suite(name: str, settings: SuiteSettings) -> list[PlannedAttack]:
    if name in ENTRIES:
        return [_entry(name, settings)]
    plan = [_entry(attack, settings) for attack in SUITES[name]]
    if name == "adaptive":
        plan += _adaptive(settings, {}, RADII)
    if name == "all":
        plan += _adaptive(settings, {}, RADII, starts=(*PAPER, GAMA_MT[-1]))
    if name == "quick":
        plan += _adaptive(settings, QUICK_ADAPTIVE, (1.0,))
    if name == "all":
        plan += _transfers(settings) + _features(settings)
    return plan


def _entry(name: str, settings: SuiteSettings) -> PlannedAttack:
    entry = ENTRIES[name]
    run, values = _bound(name, entry.run, entry.settings, settings)
    cost = entry.cost(values) * max(1, settings.samples)
    return PlannedAttack(name, run, settings.epsilon, samples=settings.samples, passes=cost)


def _adaptive(
    settings: SuiteSettings, defaults: Mapping[str, Any], radii: Sequence[float], starts: tuple[str, ...] = ()
) -> list[PlannedAttack]:
    plan = []
    for victim, kinds in settings.against.items():
        for kind in kinds:
            run, values = _bound(kind, ADAPTIVE[kind], defaults, settings)
            begun = starts if kind in GOALS_WITH_STARTS else ()
            cost = int(values["steps"] * (values["restarts"] + len(begun)) * values.get("targets", 1))
            for radius in radii if kind == "rejection" else (1.0,):
                name = f"{victim}:{kind}" + ("" if radius == 1 else f"@{radius:g}")
                plan.append(PlannedAttack(name, run, radius * settings.epsilon, victim, passes=cost, starts=begun))
    return plan


def _transfers(settings: SuiteSettings) -> list[PlannedAttack]:
    plan = []
    for source, network in settings.sources.items():
        for method, cost in (("fgsm", 1), ("pgd-7", 7), ("gama-pgd", 100)):
            run = functools.partial(transfer, source=network, method=method)
            plan.append(PlannedAttack(f"transfer:{source}:{method}", run, settings.epsilon, passes=cost))
    return plan


def _features(settings: SuiteSettings) -> list[PlannedAttack]:
    if settings.guides is None:
        return []
    images, labels = settings.guides
    plan = []
    for choice in ("random", "nearest"):
        for distance in (*FEATURE_DISTANCES, *(GAUSSIAN_DISTANCES if settings.gaussian else ())):
            run = functools.partial(
                feature_attack, guide_images=images, guide_labels=labels, guide=choice, distance=distance
            )
            plan.append(PlannedAttack(f"features:{distance}:{choice}", run, settings.epsilon, passes=100))
    return plan


def _bound(
    name: str, run: Callable[..., Tensor], defaults: Mapping[str, Any], settings: SuiteSettings
) -> tuple[Attack, dict[str, Any]]:
    """Return the attack with its settings bound, and all of them by name."""
    known = {
        parameter.name: parameter.default
        for parameter in inspect.signature(run).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    chosen = {key: value for key, value in defaults.items() if key in known}
    for key, text in settings.changed.get(name, {}).items():
        if key not in known:
            raise UsageError(f"{name} has no setting {key!r}", f"it has {', '.join(known)}")
        chosen[key] = _parsed(name, key, text, {**known, **chosen}[key])
    return functools.partial(run, **chosen), {**known, **chosen}


def _parsed(name: str, key: str, text: str, default: Any) -> Any:
    kind = float if default is None else type(default)
    if kind not in (bool, int, float, str):
        raise UsageError(f"{name}.{key} cannot be given as text", "leave it out")
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{name}.{key} is {text!r}, no {kind.__name__}", f"its default is {default}") from None
    if (kind is int and value < 1) or (kind is float and not 0 < value < math.inf):
        raise UsageError(f"{name}.{key} is {value}", "give a number above 0")
    return value


def _refuse_unused(settings: SuiteSettings, plan: Mapping[str, PlannedAttack]) -> None:
    """A setting of an attack that does not run is a mistake: somebody believes that it did something."""
    running = {
        name.rpartition(":")[2].partition("@")[0] if attack.victim else name
        for name, attack in plan.items()
        if name in ENTRIES or attack.victim
    }
    for name in settings.changed:
        if name not in running:
            raise UsageError(f"a setting is given for {name!r}, which does not run", f"use one of {', '.join(running)}")

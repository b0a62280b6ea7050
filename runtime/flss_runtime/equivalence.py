"""Whether an engine still decides as the trainer's framework did: the gate of docs/bundle-format.md, section 9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.attacked import AttackedImages, RobustComparison, compare_attacked
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.comparison import EXACT, REDUCED, Comparison, Limits, Outputs, compare, limits_for
from flss_runtime.engine_replay import Progress, Replay, Replayed
from flss_runtime.engines.precision import NONE, UNKNOWN
from flss_runtime.equivalence_report import EquivalenceReport
from flss_runtime.errors import EngineUnavailable, UsageError
from flss_runtime.flips import BUDGET, FlipTest
from flss_runtime.further_graphs import FUSED, FurtherGraphs, replay_further
from flss_runtime.judge import JUDGE, check_judge, is_judge, open_judge
from flss_runtime.opening import open_classifier
from flss_runtime.precision_check import PrecisionCheck, check_precision
from flss_runtime.sampling import LOGIT


def verify_bundle(
    bundle: Bundle | str | Path,
    engine: str = "ort",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    strict: bool = True,
    budget: float = BUDGET,
    images: npt.NDArray[np.uint8] | None = None,
    attacked: AttackedImages | None = None,
    progress: Progress | None = None,
) -> EquivalenceReport:
    """Replay a bundle's golden and reference data, and images of one's own, through an engine; needs no torch.

    The reference images are compared with the votes that the trainer's framework left in the bundle, one's own and
    attacked images with the bundle's float32 graphs on ONNX Runtime, after these have passed the first comparison.

    Args:
        bundle: A loaded bundle, or its directory.
        engine: As for `open_engine`.
        precision: Of the graphs, as for `open_classifier`.
        threads: Of the encoder.
        strict: Whether a device that is missing, or a graph that runs in another precision than its own or in one that
            the engine does not tell, is an error. If not, it is a note, but what is not told is a doubt: the verdict is
            `inconclusive` at best.
        budget: Rate of changed decisions that is allowed, in (0, 1).
        images: (M, H, W, 3) uint8 of one's own, M >= 1.
        attacked: Attacked images, to compare robust accuracy.
        progress: Told how far it is.

    Raises:
        BundleError: The bundle, or the data to replay, cannot be read.
        CheckFailed: The float32 graphs on ONNX Runtime do not pass and so cannot judge.
        DataError: The images do not fit the bundle.
        EngineUnavailable: The engine or precision is absent; or `strict` is set, and a graph runs in another precision
            or in one that is not told.
        InferenceError: The engine failed while running.
        UsageError: The budget is no rate, or the images would compare the judge with itself.
    """
    FlipTest("class", 0, 1, budget)
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    replay = Replay(bundle, images, attacked, progress)
    options: dict[str, Any] = {"policy": replay.policy, "threads": threads, "strict": strict}
    with open_classifier(bundle, engine, precision=precision, fused=False, **options) as classifier:
        facts = classifier.engine_facts()
        checked = check_precision(facts, precision, strict=strict)
        judges_itself = is_judge(facts, precision)
        if judges_itself and images is not None:
            raise UsageError(
                f"images of your own are compared with the {JUDGE}, and these are what is to be examined",
                "add --checkpoint to compare with torch (give both), or name another --engine or --precision",
            )
        limits = _limits(facts, precision)
        found = replay.through(classifier, limits)
        other_noise = replay.fresh_noise(classifier, found)
        further = replay_further(replay, classifier, precision, limits, options)
    facts, checked = _with_further(facts, further, checked, precision, strict)
    judge = found if judges_itself else _judge(replay, options)
    return EquivalenceReport(
        engine=facts["engine"],
        precision=precision,
        facts=facts,
        bundle=bundle.digest,
        budget=budget,
        thresholds=replay.thresholds,
        golden=found.golden,
        reference=found.reference,
        data=_compare_data(replay, judge, found.data, limits),
        data_reference=JUDGE if images is not None else "",
        adversarial=_compare_attacked(replay, judge, found, budget),
        fused_golden=further.fused_golden,
        fused=_compare_data(replay, judge, further.fused_data, limits, FUSED) or further.fused_reference,
        logit=further.logit,
        logit_votes=further.logit_votes,
        logit_min_votes=replay.logit_min_votes,
        other_noise=other_noise,
        notes=(*checked.notes, *_notes(replay, judges_itself)),
        unsure=checked.doubts,
    )


def _limits(facts: Mapping[str, Any], precision: str) -> Limits:
    """Return the limits of what was asked for, but of reduced precision where something is known to run in it."""
    exact = all(found in ("fp32", NONE, UNKNOWN) for found in facts["precision"].values())
    return limits_for(precision) if exact else REDUCED


def _judge(replay: Replay, options: Mapping[str, Any]) -> Replayed | None:
    """Replay through the float32 graphs on ONNX Runtime, where somebody has to judge."""
    if replay.images is None and replay.attacked is None:
        return None
    try:
        with open_judge(replay.bundle, options) as classifier:
            judge = replay.through(classifier, EXACT)
    except EngineUnavailable as error:
        raise EngineUnavailable(
            f"images of your own are compared with the {JUDGE}: {error.problem}",
            f"{error.fix}; or leave them out: the reference images need nothing but the engine",
        ) from error
    check_judge((judge.golden, judge.reference))
    return judge


def _with_further(
    facts: Mapping[str, Any], further: FurtherGraphs, checked: PrecisionCheck, precision: str, strict: bool
) -> tuple[dict[str, Any], PrecisionCheck]:
    """Add the further graphs to what is known of the engine, and to what does not fit the precision asked for."""
    theirs = {"precision": further.precision, "graphs": dict.fromkeys(further.precision, precision)}
    found = check_precision({**facts, **theirs}, precision, strict=strict)
    both = PrecisionCheck((*checked.notes, *found.notes, *further.notes), (*checked.doubts, *found.doubts))
    return {**facts, **{key: {**facts[key], **theirs[key]} for key in theirs}}, both


def _compare_data(
    replay: Replay, judge: Replayed | None, found: Outputs | None, limits: Limits, name: str = "data"
) -> Comparison | None:
    if judge is None or judge.data is None or found is None:
        return None
    min_votes, min_confidence = replay.thresholds
    return compare(
        judge.data,
        found,
        min_votes=min_votes,
        min_confidence=min_confidence,
        name=name,
        limits=limits,
    )


def _compare_attacked(
    replay: Replay, judge: Replayed | None, found: Replayed, budget: float
) -> RobustComparison | None:
    if replay.attacked is None or judge is None:
        return None
    min_votes, min_confidence = replay.thresholds
    return compare_attacked(
        replay.attacked.labels,
        judge.attacked,
        found.attacked,
        min_votes=min_votes,
        min_confidence=min_confidence,
        budget=budget,
    )


def _notes(replay: Replay, judges_itself: bool) -> list[str]:
    notes = []
    reference = replay.reference
    if reference is None:
        notes.append("no reference images in this bundle: only the golden images were replayed; export with --data")
    elif not reference.real:
        synthetic = "the reference images are synthetic: they say nothing about changed decisions on real images"
        notes.append(f"{synthetic}; export with --data")
    notes += _uncalibrated(replay)
    if replay.attacked is not None:
        notes.append(
            f"the engine examined is the {JUDGE}: on attacked images it has only itself to be compared with"
            if judges_itself
            else "the attacked images were made against torch, none of them against this engine's own rounding"
        )
    return notes


def _uncalibrated(replay: Replay) -> list[str]:
    """Say for which sampling no rejections could be counted."""
    samples, has_logit = replay.policy.num_samples, bool(replay.bundle.precisions(LOGIT))
    latent, logit = replay.thresholds[0] is None, replay.logit_min_votes is None
    if latent and (logit or not has_logit):
        return [f"not calibrated for N = {samples}: there are no rejections that could change"]
    if latent:
        return [f"not calibrated for latent sampling with N = {samples}: only rejections of the others could change"]
    if logit and has_logit:
        both = "logit or deterministic sampling"
        return [f"not calibrated for {both} with N = {samples}: only rejections of latent sampling could change"]
    return []

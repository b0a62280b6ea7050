"""The graphs that stand beside encoder and head, held against these (docs/bundle-format.md, section 9).

The fused graph has to vote as the trainer's framework did, under the same noise. The Gaussian that the logit graph
gives is compared with the one of the encoder's mean and std through the head, in the same engine and precision: all
that may come between the two is another choice of kernels. What is decided by it is compared with what is decided by
the Gaussian of the float32 encoder and head, at fixed points, so that nothing but the graphs makes a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.comparison import EXACT, REDUCED, Comparison, Limits, Outputs, compare, count_votes, relative
from flss_runtime.contract import check_logit
from flss_runtime.engine_replay import Replay, golden_votes
from flss_runtime.engines import Engine, Tensors, open_engine
from flss_runtime.errors import EngineUnavailable, GraphNotSupported
from flss_runtime.images import to_nchw
from flss_runtime.judge import JUDGE, check_judge, is_judge, open_judge
from flss_runtime.logit_gaussian import Gaussian, TwoGraphs, votes_at_points
from flss_runtime.logit_sampling import LogitSampling
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.sampling import LOGIT  # which is what its graph is called, too

FUSED = "fused"
# Two choices of kernels round a network of 16 or 8 bits differently, here and there by a step. What comes of that is
# far below 1 % of the largest value, and another network's graph, or another layer's, far above.
SAME_PRECISION = Limits(tensor=1e-2, vote_change=None, clear_flips=None)


@dataclass(frozen=True, slots=True, eq=False)
class FurtherGraphs:
    """What came of them; a part is missing where the bundle has no such graph, or nothing runs it on this engine.

    Attributes:
        precision: Role -> what its graph computes in, read back.
        fused_golden: The fused graph on the golden images, against the stored logits and votes.
        fused_reference: The same on the reference images; None where there are images of one's own.
        fused_data: Its outputs for these.
        logit: The logit graph on the golden images, against encoder and head.
        logit_votes: What is decided by it on the images that are judged, against the judge's encoder and head.
        notes: What could not be replayed, in words.
    """

    precision: Mapping[str, str] = field(default_factory=dict)
    fused_golden: Comparison | None = None
    fused_reference: Comparison | None = None
    fused_data: Outputs | None = None
    logit: Comparison | None = None
    logit_votes: Comparison | None = None
    notes: tuple[str, ...] = ()


def replay_further(
    replay: Replay, classifier: SmoothedClassifier, precision: str, limits: Limits, options: Mapping[str, Any]
) -> FurtherGraphs:
    """Replay through the graphs of a precision that stand beside encoder and head.

    Args:
        replay: What is replayed.
        classifier: Opened with encoder and head.
        precision: Of the graphs.
        limits: Of what is compared with the trainer's framework.
        options: Of `open_classifier`: "policy", "threads" and "strict".

    Raises:
        BundleError: A graph is none of its role.
        CheckFailed: The float32 graphs on ONNX Runtime do not pass and so cannot judge.
        EngineUnavailable: The engine cannot run one.
        InferenceError: The engine failed while running.
    """
    bundle, found = replay.bundle, FurtherGraphs()
    if precision in bundle.precisions(FUSED):
        with open_classifier(bundle, classifier.name, precision=precision, **options) as opened:
            if FUSED in opened.sampler.engines:  # else this engine gains nothing by it, and so nothing runs it
                found = _replay_fused(replay, classifier, opened, limits)
    if precision in bundle.precisions(LOGIT):
        threads, strict = options["threads"], options["strict"]
        try:
            opened_logit = open_engine(bundle.graph(LOGIT, precision), classifier.name, threads=threads, strict=strict)
        except GraphNotSupported as error:  # as its precision may be here: an answer can do without it
            return replace(found, notes=(f"no {LOGIT} sampling on this engine, and none verified: {error.problem}",))
        with opened_logit as logit:
            check_logit(logit, bundle.num_classes)
            compared = _replay_logit(replay, classifier, logit, EXACT if limits == EXACT else SAME_PRECISION)
            votes, notes = _judge_logit(replay, classifier, logit, precision, options)
            ran = {**found.precision, LOGIT: logit.precision()}
            found = replace(found, logit=compared, logit_votes=votes, precision=ran, notes=notes)
    return found


def _replay_fused(
    replay: Replay, classifier: SmoothedClassifier, opened: SmoothedClassifier, limits: Limits
) -> FurtherGraphs:
    golden, fused = replay.golden, opened.sampler.engines[FUSED]
    pixels, scale = to_nchw(golden.images), np.array([golden.noise_scale], np.float32)
    outputs = fused.run({"images": pixels, "noise": golden.noise, "noise_scale": scale})
    classes = replay.bundle.num_classes
    expected = {"logits": golden.logits, "mean_logits": TwoGraphs(classifier.sampler.engines, pixels).mean_logits()}
    compared = compare(
        Outputs(count_votes(golden.choices, classes), expected),
        Outputs(golden_votes(FUSED, outputs["choices"], golden, classes), outputs),
        name="fused golden",
        real=replay.real,
        limits=limits,
    )
    reference = None if replay.images is not None else replay.on_reference(opened, limits, FUSED)[0]
    return FurtherGraphs({FUSED: fused.precision()}, compared, reference, replay.on_data(opened))


def _replay_logit(replay: Replay, classifier: SmoothedClassifier, logit: Engine, limits: Limits) -> Comparison:
    golden = replay.golden
    pixels = to_nchw(golden.images)
    found = logit.run({"images": pixels})
    expected: Tensors = TwoGraphs(classifier.sampler.engines, pixels).gaussian()
    samples, classes = golden.choices.shape[1], replay.bundle.num_classes
    noise = SeededNoise(0).take(len(pixels), samples, classes)

    def outputs(gaussian: Tensors, covariance: Any) -> Outputs:
        draw = LogitSampling(samples, classes).draw
        choices = draw(gaussian["mean_logits"], gaussian["covariance"], golden.noise_scale, noise)[1]
        return Outputs(count_votes(choices, classes), {**gaussian, "covariance": covariance})

    ours, theirs = relative(expected["covariance"], found["covariance"])
    reference, candidate = outputs(expected, ours), outputs(found, theirs)
    return compare(reference, candidate, name=LOGIT, real=replay.real, limits=limits)


def _judge_logit(
    replay: Replay,
    classifier: SmoothedClassifier,
    logit: Engine,
    precision: str,
    options: Mapping[str, Any],
) -> tuple[Comparison | None, tuple[str, ...]]:
    """Compare the votes at the fixed points on the images that are judged; with what a reader has to know of it."""
    images, notes = replay.judged_images, tuple[str, ...]()
    if images is None:
        return None, notes
    progress = partial(replay.progress, f"{classifier.name}: logit votes")

    def votes(gaussian: Gaussian) -> Outputs:
        return votes_at_points(replay.bundle, gaussian, images, replay.policy, progress)

    with ExitStack() as stack:
        judge = classifier
        if not is_judge(classifier.engine_facts(), precision):
            try:
                judge = stack.enter_context(open_judge(replay.bundle, options))
                check_judge([replay.on_golden(judge, EXACT)])
            except EngineUnavailable as error:
                engine = f"encoder and head on the same engine, for lack of the {JUDGE} ({error.problem})"
                notes = (f"the votes of the {LOGIT} graph were compared with those of {engine}",)
        expected = votes(lambda pixels: TwoGraphs(judge.sampler.engines, pixels).gaussian())
    found = votes(lambda pixels: logit.run({"images": pixels}))
    theirs, ours = relative(expected.tensors["covariance"], found.tensors["covariance"])
    compared = compare(
        replace(expected, tensors={**expected.tensors, "covariance": theirs}),
        replace(found, tensors={**found.tensors, "covariance": ours}),
        min_votes=replay.logit_min_votes,
        name="logit votes",
        real=replay.images is not None or replay.real,
        limits=REDUCED,  # points go to classes by falling means: rounding of a near tie moves several votes
    )
    return compared, notes

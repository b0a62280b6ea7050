"""The graphs that stand beside encoder and head, held against these (docs/bundle-format.md, section 9).

The fused graph has to vote as the trainer's framework did, under the same noise. The Gaussian that the logit graph
gives is compared with the one of the encoder's mean and std through the head, in the same engine and precision: all
that may come between the two is another choice of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.comparison import EXACT, Comparison, Limits, Outputs, compare, count_votes, relative
from flss_runtime.contract import check_logit
from flss_runtime.engine_replay import Replay, golden_votes
from flss_runtime.engines import Engine, Tensors, open_engine
from flss_runtime.errors import GraphNotSupported
from flss_runtime.images import FloatArray, to_nchw
from flss_runtime.logit_sampling import LogitSampling
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.sampling import LOGIT  # which is what its graph is called, too

FUSED = "fused"
# Two choices of kernels round a network of 16 or 8 bits differently, here and there by a step. What comes of that is
# far below 1 % of the largest value, and another network's graph, or another layer's, far above.
SAME_PRECISION = Limits(tensor=1e-2, vote_change=None, clear_flips=None)
_ROWS = 100  # of the unit matrix in one call of the head


@dataclass(frozen=True, slots=True, eq=False)
class FurtherGraphs:
    """What came of them; a part is missing where the bundle has no such graph, or nothing runs it on this engine.

    Attributes:
        precision: Role -> what its graph computes in, read back.
        fused_golden: The fused graph on the golden images, against the stored logits and votes.
        fused_reference: The same on the reference images; None where there are images of one's own.
        fused_data: Its outputs for these.
        logit: The logit graph on the golden images, against encoder and head.
        notes: What could not be replayed, in words.
    """

    precision: Mapping[str, str] = field(default_factory=dict)
    fused_golden: Comparison | None = None
    fused_reference: Comparison | None = None
    fused_data: Outputs | None = None
    logit: Comparison | None = None
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
            found = replace(found, logit=compared, precision={**found.precision, LOGIT: logit.precision()})
    return found


def _replay_fused(
    replay: Replay, classifier: SmoothedClassifier, opened: SmoothedClassifier, limits: Limits
) -> FurtherGraphs:
    golden, fused = replay.golden, opened.sampler.engines[FUSED]
    pixels, scale = to_nchw(golden.images), np.array([golden.noise_scale], np.float32)
    outputs = fused.run({"images": pixels, "noise": golden.noise, "noise_scale": scale})
    classes = replay.bundle.num_classes
    expected = {"logits": golden.logits, "mean_logits": _TwoGraphs(classifier, pixels).mean_logits()}
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
    graphs, found = _TwoGraphs(classifier, pixels), logit.run({"images": pixels})
    expected: Tensors = {"mean_logits": graphs.mean_logits(), "covariance": graphs.covariance()}
    samples, classes = golden.choices.shape[1], replay.bundle.num_classes
    noise = SeededNoise(0).take(len(pixels), samples, classes)

    def outputs(gaussian: Tensors, covariance: Any) -> Outputs:
        draw = LogitSampling(samples, classes).draw
        choices = draw(gaussian["mean_logits"], gaussian["covariance"], golden.noise_scale, noise)[1]
        return Outputs(count_votes(choices, classes), {**gaussian, "covariance": covariance})

    ours, theirs = relative(expected["covariance"], found["covariance"])
    reference, candidate = outputs(expected, ours), outputs(found, theirs)
    return compare(reference, candidate, name=LOGIT, real=replay.real, limits=limits)


class _TwoGraphs:
    """What encoder and head say of the logits' Gaussian for some images."""

    def __init__(self, classifier: SmoothedClassifier, pixels: FloatArray) -> None:
        encoder, self._head = (classifier.sampler.engines[role] for role in ("encoder", "head"))
        self._latent = encoder.run({"images": pixels})

    def mean_logits(self) -> FloatArray:
        """Return the logits of the mean, (B, K)."""
        return self._logits(self._latent["mean"], self._still)[:, 0]

    def covariance(self) -> npt.NDArray[np.float64]:
        """Return the covariance (B, K, K) that a linear head makes of the standard deviations.

        The unit matrix in place of noise gives what each latent dimension adds, std_d W_d, for which nobody has to read
        the weights out of an ONNX file. The mean stays out of it: rounding beside its logits would show.
        """
        nothing = np.zeros_like(self._latent["mean"])
        unit = np.eye(nothing.shape[1], dtype=np.float32)[None]
        rows = [self._logits(nothing, unit[:, first : first + _ROWS]) for first in range(0, unit.shape[1], _ROWS)]
        added = np.concatenate(rows, axis=1).astype(np.float64) - self._logits(nothing, self._still)  # (B, D, K)
        product: npt.NDArray[np.float64] = added.transpose(0, 2, 1) @ added
        return product

    @property
    def _still(self) -> FloatArray:
        return np.zeros((1, 1, self._latent["mean"].shape[1]), np.float32)

    def _logits(self, mean: FloatArray, noise: FloatArray) -> FloatArray:
        tensors = {"mean": mean, "std": self._latent["std"], "noise": noise, "noise_scale": np.ones(1, np.float32)}
        logits: FloatArray = self._head.run(tensors)["logits"]
        return logits

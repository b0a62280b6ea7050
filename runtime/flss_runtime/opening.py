"""From a bundle to a classifier that is ready."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.bundle_engines import open_bundle_engines
from flss_runtime.classifier import SmoothedClassifier, check_policy
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.errors import UsageError
from flss_runtime.noise import NoiseSource, SystemNoise
from flss_runtime.samplers import make_sampler
from flss_runtime.sampling import LATENT


def open_classifier(
    bundle: Bundle | str | Path,
    engine: str = "ort",
    *,
    precision: str = "fp32",
    sampling: str = LATENT,
    fused: bool | None = None,
    num_samples: int | None = None,
    policy: SmoothingPolicy | None = None,
    noise: NoiseSource | None = None,
    threads: int | None = None,
    strict: bool = True,
) -> SmoothedClassifier:
    """Open a bundle's graphs and make a classifier of them; a bundle with a gate makes a cascade.

    Args:
        bundle: A loaded bundle, or its path, which is loaded and verified.
        engine: As for `open_engine`; "auto" measures the encoder, and takes the same engine for the other graphs.
        precision: "fp32", "fp16" or "int8", of the encoder and the gate, as the bundle has them; the head stays in
            float32, but where the engine cannot build that: then it is fp16 too.
        sampling: "latent", "logit" or "deterministic" (`flss_runtime.sampling`); each has thresholds of its own.
        fused: Whether latent sampling runs encoder and head as one graph, as `open_bundle_engines`; None chooses.
        num_samples: Latent samples an image; None takes the bundle's own number.
        policy: Replaces the bundle's calibrated policy, for calibration and measurements; with a `min_confidence` iff
            the bundle has a gate.
        noise: Source of the noise; None takes `SystemNoise`, which nobody can predict.
        threads: Threads of the encoder and of the gate; None takes the physical cores. The head always has one.
        strict: As for `open_engine`.

    Returns:
        The classifier, ready; close it or use it as a context manager.

    Raises:
        UsageError: Both `policy` and another `num_samples`, a policy that does not go with the gate, or an unknown
            engine.
        BundleError: The bundle cannot be loaded or verified.
        UncalibratedError: The bundle has no threshold for this number of samples.
        EngineUnavailable: The engine's library is not installed, the device is missing, or the bundle has no graph in
            this precision.
    """
    if policy is not None and num_samples not in (None, policy.num_samples):
        raise UsageError(
            f"num_samples is {num_samples}, but the policy is for {policy.num_samples}", "pass only one of the two"
        )
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(Path(bundle))
    policy = policy or bundle.policy(num_samples, sampling)
    check_policy(policy, bundle.has_gate)
    opened = open_bundle_engines(
        bundle, engine, precision=precision, sampling=sampling, fused=fused, threads=threads, strict=strict
    )
    with ExitStack() as undo:
        undo.callback(opened.close)
        sampler = make_sampler(opened.engines, sampling, bundle.latent_dim, bundle.num_classes)
        parts = sampler, noise or SystemNoise(), policy, bundle.input, bundle.class_names
        classifier = SmoothedClassifier(*parts, opened.engines.get("gate"), graphs=opened.graphs)
        undo.pop_all()  # the classifier closes them from here on
    return classifier

"""Images to decisions: one encoder call an image, one head call for all its latent samples, one vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from flss_runtime.batches import Batches, Images
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.contract import check_gate, check_pair
from flss_runtime.decision import Decision, IntArray, SmoothingPolicy, Status, confidences, decide, decide_cascade
from flss_runtime.engines import Engine, open_engine
from flss_runtime.errors import DataError, InferenceError, UsageError
from flss_runtime.images import FloatArray, InputSpec, check_image
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource, SystemNoise

_NOT_FINITE = "export the bundle again and verify it (flss-edge verify); reduced precision may have overflowed"


class SmoothedClassifier:
    """Classify images by the majority of many latent samples, and decline where the majority is too small.

    With a gate it is a cascade: where the gate is confident the latent mean's class is the answer, and never declined.
    The samples vote all the same, so every frame costs the same.

    Owns its engines, its noise source and a few buffers: use one in one thread, and close it or use it as a context
    manager. Every valid image takes the next counter of the noise source; invalid ones take none.

    Args:
        encoder: Graph images (B, 3, H, W) -> mean (B, D), std (B, D).
        head: Graph mean, std, noise (B or 1, N, D), noise_scale (1,) -> logits (B, N, K), choices (B, N). Give it one
            thread: its work is too small to share, and a second pool of threads slows the encoder down.
        noise: Where the standard normals come from.
        policy: Number of samples, noise scale and threshold.
        input: What the encoder takes.
        class_names: Names of the K classes.
        gate: Graph images (B, 3, H, W) -> logits (B, K); it goes with a policy that has a `min_confidence`.

    Raises:
        BundleError: The graphs are not such a pair, or not such a gate.
        UsageError: A gate without `min_confidence`, or the other way round.
    """

    def __init__(
        self,
        encoder: Engine,
        head: Engine,
        noise: NoiseSource,
        policy: SmoothingPolicy,
        input: InputSpec,
        class_names: Sequence[str],
        gate: Engine | None = None,
    ) -> None:
        check_pair(encoder, head, len(class_names))
        _check_policy(policy, gate is not None)
        if gate is not None:
            check_gate(gate, len(class_names))
        self.encoder = encoder
        self.head = head
        self.gate = gate
        self.noise = noise
        self.policy = policy
        self.input = input
        self.class_names = tuple(class_names)
        self._noise_scale = np.array([policy.noise_scale], np.float32)
        latent_dim = head.inputs["mean"].shape[-1]  # where that is free: assume a large one
        self._batches = Batches(input, 4 * policy.num_samples * (latent_dim if isinstance(latent_dim, int) else 4096))

    def classify(self, images: Images) -> list[Decision]:
        """Decide for each image.

        Args:
            images: (H, W, 3) uint8 or (3, H, W) float32 in [0, 1], a (B, …) array of either, or a list that may mix
                them.

        Returns:
            One decision an image, in order. An image that cannot be classified gets an `invalid_input` decision with
            the reason, and the others their answers.

        Raises:
            InferenceError: An engine failed, or gave values that are not finite.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:  # the hot path: one camera frame
            problem = check_image(images, self.input)
            return [_invalid(problem)] if problem else self._decide(self._batches.stack([images]))
        frames, problems = self._batches.checked(images)
        answers: Iterator[Decision] = iter(())
        valid = [frame for frame, problem in zip(frames, problems, strict=True) if not problem]
        if valid:
            answers = iter([decision for pixels in self._batches.of_valid(valid) for decision in self._decide(pixels)])
        return [_invalid(problem) if problem else next(answers) for problem in problems]

    def vote(self, images: Images) -> IntArray:
        """Give the class each latent sample of each image votes for.

        Args:
            images: As for `classify`, all of them valid.

        Returns:
            (B, N) int64 class indices; `decide` makes decisions of them.

        Raises:
            DataError: An image is invalid.
            InferenceError: An engine failed, or gave values that are not finite.
        """
        chunks = [self._sample(self._encode(pixels))[1] for pixels in self._batches.of(images)]
        return np.concatenate([np.empty((0, self.policy.num_samples), np.int64), *chunks])

    def logits(self, images: Images) -> FloatArray:
        """Give the class scores of each latent sample of each image.

        Args:
            images: As for `classify`, all of them valid.

        Returns:
            (B, N, K) float32; for many images `vote` needs far less memory.

        Raises:
            DataError: An image is invalid.
            InferenceError: An engine failed, or gave values that are not finite.
        """
        chunks = [self._sample(self._encode(pixels))[0] for pixels in self._batches.of(images)]
        return np.concatenate([np.empty((0, self.policy.num_samples, len(self.class_names)), np.float32), *chunks])

    def encode(self, images: Images) -> LatentGaussian:
        """Give the Gaussian each image has in the latent space; takes no noise.

        Args:
            images: As for `classify`, at least one, all of them valid.

        Returns:
            mean and std, each (B, D) float32.

        Raises:
            DataError: An image is invalid, or there is none.
            InferenceError: The encoder failed.
        """
        latents = [self._encode(pixels) for pixels in self._batches.of(images)]
        if not latents:
            raise DataError("there is no image to encode", "pass at least one image")
        return LatentGaussian(
            np.concatenate([latent.mean for latent in latents]), np.concatenate([latent.std for latent in latents])
        )

    def mean_choices(self, images: Images) -> IntArray:
        """Give the class of each image without sampling, that of its latent mean; takes no noise.

        Args:
            images: As for `classify`, all of them valid.

        Returns:
            (B,) int64 class indices.

        Raises:
            DataError: An image is invalid.
            InferenceError: An engine failed, or gave values that are not finite.
        """
        chunks = [self._mean_choices(self._encode(pixels)) for pixels in self._batches.of(images)]
        return np.concatenate([np.empty(0, np.int64), *chunks])

    def gate_logits(self, images: Images) -> FloatArray:
        """Give the gate's class scores of each image; takes no noise.

        Args:
            images: As for `classify`, all of them valid.

        Returns:
            (B, K) float32; `decision.confidences` makes confidences of them.

        Raises:
            UsageError: There is no gate.
            DataError: An image is invalid.
            InferenceError: The gate failed, or gave values that are not finite.
        """
        if self.gate is None:
            raise UsageError("this classifier has no gate", "export the bundle with one: flss-edge export --gate")
        chunks = [_gate_logits(self.gate, pixels) for pixels in self._batches.of(images)]
        return np.concatenate([np.empty((0, len(self.class_names)), np.float32), *chunks])

    def close(self) -> None:
        """Close the engines."""
        self.encoder.close()
        self.head.close()
        if self.gate is not None:
            self.gate.close()

    def __enter__(self) -> SmoothedClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, pixels: FloatArray) -> list[Decision]:
        first = self.noise.counter
        counters = range(first, first + len(pixels))
        latent = self._encode(pixels)
        choices = self._sample(latent)[1]
        if self.gate is None:
            return decide(choices, self.policy, counters)
        confidence = confidences(_gate_logits(self.gate, pixels))
        return decide_cascade(choices, self.policy, confidence, self._mean_choices(latent), counters)

    def _sample(self, latent: LatentGaussian) -> tuple[FloatArray, IntArray]:
        return self._classes(latent, self.noise.take(len(latent.mean), self.policy.num_samples, latent.mean.shape[1]))

    def _mean_choices(self, latent: LatentGaussian) -> IntArray:
        return self._classes(latent, np.zeros((1, 1, latent.mean.shape[1]), np.float32))[1][:, 0]

    def _classes(self, latent: LatentGaussian, noise: FloatArray) -> tuple[FloatArray, IntArray]:
        out = self.head.run({"mean": latent.mean, "std": latent.std, "noise": noise, "noise_scale": self._noise_scale})
        return _finite("head", out["logits"]), out["choices"]

    def _encode(self, pixels: FloatArray) -> LatentGaussian:
        out = self.encoder.run({"images": pixels})
        return LatentGaussian(out["mean"], out["std"])


def open_classifier(
    bundle: Bundle | str | Path,
    engine: str = "ort",
    *,
    num_samples: int | None = None,
    policy: SmoothingPolicy | None = None,
    noise: NoiseSource | None = None,
    threads: int | None = None,
) -> SmoothedClassifier:
    """Open a bundle's graphs and make a classifier of them; a bundle with a gate makes a cascade.

    Args:
        bundle: A loaded bundle, or its path, which is loaded and verified.
        engine: As for `open_engine`.
        num_samples: Latent samples an image; None takes the bundle's own number.
        policy: Replaces the bundle's calibrated policy, for calibration and measurements; with a `min_confidence` iff
            the bundle has a gate.
        noise: Source of the noise; None takes `SystemNoise`, which nobody can predict.
        threads: Threads of the encoder and of the gate; None takes the physical cores. The head always has one.

    Returns:
        The classifier, ready; close it or use it as a context manager.

    Raises:
        UsageError: Both `policy` and another `num_samples`, a policy that does not go with the gate, or an unknown
            engine.
        BundleError: The bundle cannot be loaded or verified.
        UncalibratedError: The bundle has no threshold for this number of samples.
        EngineUnavailable: The engine's library is not installed.
    """
    if policy is not None and num_samples not in (None, policy.num_samples):
        raise UsageError(
            f"num_samples is {num_samples}, but the policy is for {policy.num_samples}", "pass only one of the two"
        )
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(Path(bundle))
    policy = policy or bundle.policy(num_samples)
    _check_policy(policy, bundle.has_gate)
    with ExitStack() as opened:
        encoder = opened.enter_context(open_engine(bundle.graph("encoder"), engine, threads=threads))
        head = opened.enter_context(open_engine(bundle.graph("head"), engine, threads=1))
        gate = None
        if bundle.has_gate:
            gate = opened.enter_context(open_engine(bundle.graph("gate"), engine, threads=threads))
        parts = encoder, head, noise or SystemNoise(), policy, bundle.input, bundle.class_names, gate
        classifier = SmoothedClassifier(*parts)
        opened.pop_all()  # the classifier closes them from here on
    return classifier


def _invalid(reason: str) -> Decision:
    return Decision(None, None, 0, 0.0, Status.INVALID_INPUT, reason=reason)


def _check_policy(policy: SmoothingPolicy, has_gate: bool) -> None:
    if has_gate and policy.min_confidence is None:
        raise UsageError("a policy without min_confidence would leave the gate out", "pass one with min_confidence")
    if not has_gate and policy.min_confidence is not None:
        raise UsageError("the policy has a min_confidence, but there is no gate", "leave min_confidence at None")


def _gate_logits(gate: Engine, pixels: FloatArray) -> FloatArray:
    return _finite("gate", gate.run({"images": pixels})["logits"])


def _finite(role: str, logits: FloatArray) -> FloatArray:
    if not np.isfinite(logits).all():  # its arg-max would be an arbitrary class
        raise InferenceError(f"the {role} gave class scores that are not finite", _NOT_FINITE)
    return logits

"""Images to decisions: one encoder call an image, one head call for all its latent samples, one vote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from flss_runtime.batches import Batches, Images
from flss_runtime.contract import check_gate, check_pair
from flss_runtime.decision import Decision, IntArray, SmoothingPolicy, Status, confidences, decide, decide_cascade
from flss_runtime.engines import Engine
from flss_runtime.engines.pair import join
from flss_runtime.errors import DataError, InferenceError, UsageError
from flss_runtime.images import FloatArray, InputSpec, check_image
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource

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
        graphs: Role -> precision of its graph, which `engine_facts` repeats; None where nobody knows.

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
        *,
        graphs: Mapping[str, str] | None = None,
    ) -> None:
        check_pair(encoder, head, len(class_names))
        check_policy(policy, gate is not None)
        if gate is not None:
            check_gate(gate, len(class_names))
        self.encoder = encoder
        self.head = head
        self.gate = gate
        self._graphs = graphs
        self._pair = join(encoder, head)
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
        chunks = [self._vote(pixels)[1] for pixels in self._batches.of(images)]
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
        chunks = [self._vote(pixels)[0] for pixels in self._batches.of(images)]
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

    def engine_facts(self) -> dict[str, Any]:
        """Read back what the graphs run on; as dear as `Engine.precision`, once for each graph.

        Returns:
            "engine", "library" and "device" of the encoder, and "precision": role -> what its graph computes in;
            where it is known "graphs": role -> precision of the graph that was opened.

        Raises:
            EngineUnavailable: An engine runs elsewhere than on its device, or nothing could be read back.
        """
        graphs = {"encoder": self.encoder, "head": self.head, "gate": self.gate}
        opened = {} if self._graphs is None else {"graphs": dict(self._graphs)}
        return {
            "engine": self.encoder.name,
            "library": self.encoder.library,
            "device": self.encoder.device,
            "precision": {role: graph.precision() for role, graph in graphs.items() if graph is not None},
            **opened,
        }

    def close(self) -> None:
        """Close the engines."""
        if self._pair is not None:
            self._pair.close()
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
        if self.gate is None:
            return decide(self._vote(pixels)[1], self.policy, counters)
        latent = self._encode(pixels)
        choices = self._sample(latent)[1]
        confidence = confidences(_gate_logits(self.gate, pixels))
        return decide_cascade(choices, self.policy, confidence, self._mean_choices(latent), counters)

    def _vote(self, pixels: FloatArray) -> tuple[FloatArray, IntArray]:
        if self._pair is None:
            return self._sample(self._encode(pixels))
        logits, choices = self._pair.sample(pixels, self.noise, self.policy.num_samples, self.policy.noise_scale)
        return _finite("head", logits), choices

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


def _invalid(reason: str) -> Decision:
    return Decision(None, None, 0, 0.0, Status.INVALID_INPUT, reason=reason)


def check_policy(policy: SmoothingPolicy, has_gate: bool) -> None:
    """Raise UsageError unless the policy has a threshold for the gate iff there is one."""
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

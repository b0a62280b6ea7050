"""Images to decisions: one encoder call an image, one head call for all its latent samples, one vote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from flss_runtime.batches import Batches, Images
from flss_runtime.contract import check_gate
from flss_runtime.decision import (
    Decision,
    IntArray,
    SmoothingPolicy,
    Status,
    confidences,
    decide,
    decide_cascade,
    unanswered,
)
from flss_runtime.engines import Engine
from flss_runtime.errors import DataError, InferenceError, UsageError
from flss_runtime.images import FloatArray, InputSpec, check_image
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource
from flss_runtime.samplers import Sampler

_NOT_FINITE = "export the bundle again and verify it (flss-edge verify); reduced precision may have overflowed"


class SmoothedClassifier:
    """Classify images by the majority of many latent samples, and decline where the majority is too small.

    With a gate it is a cascade: where the gate is confident the latent mean's class is the answer, and never declined.
    The samples vote all the same, so every frame costs the same.

    Owns its engines, its noise source and a few buffers: use one in one thread, and close it or use it as a context
    manager. Every valid image takes the next counter of the noise source; invalid ones take none, and under
    deterministic sampling nothing does.

    Args:
        sampler: What makes votes of images: two graphs, one that is fused, or the Gaussian of the logits.
        noise: Where the standard normals come from.
        policy: Number of samples, noise scale and threshold.
        input: What the encoder takes.
        class_names: Names of the K classes.
        gate: Graph images (B, 3, H, W) -> logits (B, K); it goes with a policy that has a `min_confidence`.
        graphs: Role -> precision of its graph, which `engine_facts` repeats; None where nobody knows.

    Raises:
        BundleError: The gate is none.
        UsageError: A gate without `min_confidence`, or the other way round.
    """

    def __init__(
        self,
        sampler: Sampler,
        noise: NoiseSource,
        policy: SmoothingPolicy,
        input: InputSpec,
        class_names: Sequence[str],
        gate: Engine | None = None,
        *,
        graphs: Mapping[str, str] | None = None,
    ) -> None:
        check_policy(policy, gate is not None)
        if gate is not None:
            check_gate(gate, len(class_names))
        self.sampler = sampler
        self.gate = gate
        self._graphs = graphs
        self.noise = noise
        self.policy = policy
        self.input = input
        self.class_names = tuple(class_names)
        self._batches = Batches(input, 4 * policy.num_samples * max(sampler.noise_dim, len(class_names)))
        sampler.frame = self._batches.frame

    @property
    def name(self) -> str:
        """The engine that runs the network, as `Engine.name`."""
        return next(iter(self.sampler.engines.values())).name

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
            return (
                [unanswered(Status.INVALID_INPUT, problem)] if problem else self._decide(self._batches.stack([images]))
            )
        frames, problems = self._batches.checked(images)
        answers: Iterator[Decision] = iter(())
        valid = [frame for frame, problem in zip(frames, problems, strict=True) if not problem]
        if valid:
            answers = iter([decision for pixels in self._batches.of_valid(valid) for decision in self._decide(pixels)])
        return [unanswered(Status.INVALID_INPUT, each) if each else next(answers) for each in problems]

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
        chunks = [self._vote(pixels)[1].copy() for pixels in self._batches.of(images)]
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
        chunks = [self._vote(pixels)[0].copy() for pixels in self._batches.of(images)]
        return np.concatenate([np.empty((0, self.policy.num_samples, len(self.class_names)), np.float32), *chunks])

    def encode(self, images: Images) -> LatentGaussian:
        """Give the Gaussian each image has in the latent space; takes no noise.

        Args:
            images: As for `classify`, at least one, all of them valid.

        Returns:
            mean and std, each (B, D) float32.

        Raises:
            UsageError: The graph that votes here does not give it.
            DataError: An image is invalid, or there is none.
            InferenceError: The encoder failed.
        """
        latents = [self.sampler.encode(pixels) for pixels in self._batches.of(images)]
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
        chunks = [self.sampler.mean_choices(pixels) for pixels in self._batches.of(images)]
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
            "engine", "library" and "device" of the network, "sampling", and "precision": role -> what its graph really
            computes in; where it is known "graphs": role -> precision of the graph that was opened.

        Raises:
            EngineUnavailable: An engine runs elsewhere than on its device, or nothing could be read back.
        """
        graphs = {**self.sampler.engines, **({} if self.gate is None else {"gate": self.gate})}
        first = next(iter(graphs.values()))
        opened = {} if self._graphs is None else {"graphs": dict(self._graphs)}
        return {
            "engine": first.name,
            "library": first.library,
            "device": first.device,
            "sampling": self.sampler.sampling,
            "precision": {role: graph.precision() for role, graph in graphs.items()},
            **opened,
        }

    def close(self) -> None:
        """Close the engines."""
        self.sampler.close()
        if self.gate is not None:
            self.gate.close()

    def __enter__(self) -> SmoothedClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, pixels: FloatArray) -> list[Decision]:
        counters = None
        if self.sampler.noise_dim > 0:  # else the votes are not random
            counters = range(self.noise.counter, self.noise.counter + len(pixels))
        if self.gate is None:
            return decide(self._vote(pixels)[1], self.policy, counters)
        policy = self.policy
        sampled = self.sampler.sample_with_mean(pixels, self.noise, policy.num_samples, policy.noise_scale)
        logits, choices, mean_choices = sampled
        _check_finite(self.sampler, logits)
        return decide_cascade(choices, policy, confidences(_gate_logits(self.gate, pixels)), mean_choices, counters)

    def _vote(self, pixels: FloatArray) -> tuple[FloatArray, IntArray]:
        policy = self.policy
        logits, choices = self.sampler.sample(pixels, self.noise, policy.num_samples, policy.noise_scale)
        _check_finite(self.sampler, logits)
        return logits, choices


def check_policy(policy: SmoothingPolicy, has_gate: bool) -> None:
    """Raise UsageError unless the policy has a threshold for the gate iff there is one."""
    if has_gate and policy.min_confidence is None:
        raise UsageError("a policy without min_confidence would leave the gate out", "pass one with min_confidence")
    if not has_gate and policy.min_confidence is not None:
        raise UsageError("the policy has a min_confidence, but there is no gate", "leave min_confidence at None")


def _gate_logits(gate: Engine, pixels: FloatArray) -> FloatArray:
    logits: FloatArray = gate.run({"images": pixels})["logits"]
    if not np.isfinite(logits).all():
        raise InferenceError("the gate graph gave class scores that are not finite", _NOT_FINITE)
    return logits


def _check_finite(sampler: Sampler, logits: FloatArray) -> None:
    """Refuse class scores whose arg-max would be an arbitrary class.

    Their sum of squares is finite only where all of them are: one number, and no warning, tells for nearly every frame.
    """
    if not math.isfinite(np.vdot(logits, logits)) and not np.isfinite(logits).all():
        role = list(sampler.engines)[-1]
        raise InferenceError(f"the {role} graph gave class scores that are not finite", _NOT_FINITE)

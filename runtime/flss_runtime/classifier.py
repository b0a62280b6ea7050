"""Images to decisions: one encoder call an image, one head call for all its latent samples, one vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.decision import Decision, IntArray, SmoothingPolicy, Status, decide
from flss_runtime.engines import Engine, open_engine
from flss_runtime.errors import BundleError, DataError, InferenceError, UsageError
from flss_runtime.images import FloatArray, InputSpec, check_image, to_nchw
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource, SystemNoise

Images = npt.NDArray[Any] | Sequence[Any]

_MAX_BATCH = 128
_CHUNK_BYTES = 64 * 2**20  # of noise
_INPUT_BYTES = 8 * 2**20  # of images: an encoder's activations take some ten times its input
_NOT_FINITE = "export the bundle again and verify it (flss-edge verify); reduced precision may have overflowed"


class SmoothedClassifier:
    """Classify images by the majority of many latent samples, and decline where the majority is too small.

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

    Raises:
        BundleError: The graphs are not such a pair.
    """

    def __init__(
        self,
        encoder: Engine,
        head: Engine,
        noise: NoiseSource,
        policy: SmoothingPolicy,
        input: InputSpec,
        class_names: Sequence[str],
    ) -> None:
        check_pair(encoder, head, len(class_names))
        self.encoder = encoder
        self.head = head
        self.noise = noise
        self.policy = policy
        self.input = input
        self.class_names = tuple(class_names)
        self._noise_scale = np.array([policy.noise_scale], np.float32)
        self._one_image = np.empty((1, 3, input.height, input.width), np.float32)

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
            return [_invalid(problem)] if problem else self._decide([images])
        frames, problems = self._checked(images)
        answers: Iterator[Decision] = iter(())
        valid = [frame for frame, problem in zip(frames, problems, strict=True) if not problem]
        if valid:
            answers = iter([decision for chunk in self._chunks(valid) for decision in self._decide(chunk)])
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
        chunks = [self._sample(chunk)[1] for chunk in self._chunks(self._all_valid(images))]
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
        chunks = [self._sample(chunk)[0] for chunk in self._chunks(self._all_valid(images))]
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
        latents = [self._encode(chunk) for chunk in self._chunks(self._all_valid(images))]
        if not latents:
            raise DataError("there is no image to encode", "pass at least one image")
        return LatentGaussian(
            np.concatenate([latent.mean for latent in latents]), np.concatenate([latent.std for latent in latents])
        )

    def close(self) -> None:
        """Close both engines."""
        self.encoder.close()
        self.head.close()

    def __enter__(self) -> SmoothedClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, chunk: Sequence[npt.NDArray[Any]]) -> list[Decision]:
        first = self.noise.counter
        return decide(self._sample(chunk)[1], self.policy, range(first, first + len(chunk)))

    def _sample(self, chunk: Sequence[npt.NDArray[Any]]) -> tuple[FloatArray, IntArray]:
        latent = self._encode(chunk)
        noise = self.noise.take(len(chunk), self.policy.num_samples, latent.mean.shape[1])
        out = self.head.run({"mean": latent.mean, "std": latent.std, "noise": noise, "noise_scale": self._noise_scale})
        logits = out["logits"]
        if not np.isfinite(logits).all():  # its arg-max would be an arbitrary class
            raise InferenceError("the head gave class scores that are not finite", _NOT_FINITE)
        return logits, out["choices"]

    def _encode(self, chunk: Sequence[npt.NDArray[Any]]) -> LatentGaussian:
        out = self.encoder.run({"images": self._batched(chunk)})
        return LatentGaussian(out["mean"], out["std"])

    def _batched(self, chunk: Sequence[npt.NDArray[Any]]) -> FloatArray:
        """Stack valid images to (B, 3, H, W) float32, for one image without allocating."""
        if len(chunk) == 1:
            return to_nchw(chunk[0][None], self._one_image) if chunk[0].dtype == np.uint8 else chunk[0][None]
        batch = np.empty((len(chunk), *self._one_image.shape[1:]), np.float32)
        for row, image in enumerate(chunk):
            if image.dtype == np.uint8:
                to_nchw(image[None], batch[row : row + 1])
            else:
                batch[row] = image
        return batch

    def _chunks(self, images: Sequence[npt.NDArray[Any]]) -> Iterator[Sequence[npt.NDArray[Any]]]:
        noise_bytes = 4 * self.policy.num_samples * self._latent_dim()
        size = max(1, min(_MAX_BATCH, _CHUNK_BYTES // noise_bytes, _INPUT_BYTES // self._one_image.nbytes))
        for start in range(0, len(images), size):
            yield images[start : start + size]

    def _latent_dim(self) -> int:
        size = self.head.inputs["mean"].shape[-1]
        return size if isinstance(size, int) else 4096  # a free dimension: assume a large one

    def _checked(self, images: Images) -> tuple[Sequence[Any], list[str]]:
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not several and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]  # one image, or something that is none and gets told so
        return list(images), [check_image(image, self.input) for image in images]

    def _all_valid(self, images: Images) -> Sequence[npt.NDArray[Any]]:
        frames, problems = self._checked(images)
        for number, problem in enumerate(problems):
            if problem:
                raise DataError(
                    f"image {number} cannot be classified: {problem}",
                    "pass uint8 (B, H, W, 3) or float32 (B, 3, H, W) in [0, 1]; read_image() brings files to that",
                )
        return frames


def open_classifier(
    bundle: Bundle | str | Path,
    engine: str = "ort",
    *,
    num_samples: int | None = None,
    policy: SmoothingPolicy | None = None,
    noise: NoiseSource | None = None,
    threads: int | None = None,
) -> SmoothedClassifier:
    """Open a bundle's two graphs and make a classifier of them.

    Args:
        bundle: A loaded bundle, or its path, which is loaded and verified.
        engine: As for `open_engine`.
        num_samples: Latent samples an image; None takes the bundle's own number.
        policy: Replaces the bundle's calibrated policy, for calibration and measurements.
        noise: Source of the noise; None takes `SystemNoise`, which nobody can predict.
        threads: Threads of the encoder; None takes the physical cores. The head always has one.

    Returns:
        The classifier, ready; close it or use it as a context manager.

    Raises:
        UsageError: Both `policy` and another `num_samples`, or an unknown engine.
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
    with ExitStack() as opened:
        encoder = opened.enter_context(open_engine(bundle.graph("encoder"), engine, threads=threads))
        head = opened.enter_context(open_engine(bundle.graph("head"), engine, threads=1))
        classifier = SmoothedClassifier(encoder, head, noise or SystemNoise(), policy, bundle.input, bundle.class_names)
        opened.pop_all()  # the classifier closes them from here on
    return classifier


def _invalid(reason: str) -> Decision:
    return Decision(None, None, 0, 0.0, Status.INVALID_INPUT, reason=reason)


def check_pair(encoder: Engine, head: Engine, num_classes: int) -> None:
    """Check that two graphs are an encoder and its head.

    Raises:
        BundleError: Names of inputs or outputs, latent size or number of classes do not fit.
    """
    _check_graph("encoder", encoder, {"images"}, {"mean", "std"})
    _check_graph("head", head, {"mean", "std", "noise", "noise_scale"}, {"logits", "choices"})
    _check_size("latent dimensions", encoder.outputs["mean"].shape[-1], head.inputs["mean"].shape[-1])
    _check_size("classes", head.outputs["logits"].shape[-1], num_classes)


def _check_graph(role: str, engine: Engine, inputs: set[str], outputs: set[str]) -> None:
    if set(engine.inputs) != inputs or set(engine.outputs) != outputs:
        raise BundleError(
            f"the {role} graph maps {sorted(engine.inputs)} to {sorted(engine.outputs)}; "
            f"expected {sorted(inputs)} to {sorted(outputs)}",
            "export the bundle again with this version of flss-edge",
        )


def _check_size(what: str, first: int | str, second: int | str) -> None:
    if isinstance(first, int) and isinstance(second, int) and first != second:
        raise BundleError(
            f"the parts of the bundle disagree on the number of {what}: {first} and {second}",
            "export the bundle again: its graphs come from different models",
        )

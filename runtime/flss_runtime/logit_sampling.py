"""The samples' logits without latents: of a linear head they are Gaussian, in as many dimensions as there are classes.

With a linear head W, b and latents Normal(mean, s^2 diag(std^2)), the logits of a sample are Normal(m, s^2 C) with the
mean logits m = W mean + b and the covariance C = W diag(std^2) W^T (docs/method.md). So K normals a sample and a K x K
Cholesky factor give the very distribution that D normals and the head give.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import InferenceError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
FactorArray = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]

MAX_CLASSES = 32  # beyond, the K x K factor costs more than the head that it replaces
# Of the trace, added to the diagonal: C is singular where the rows of W sum to zero, and rounding in float32 makes it
# indefinite by up to the rounding of its entries times the trace. The second one is for what the first cannot mend.
JITTERS = (1e-6, 1e-4)
_TINY = 1e-30  # an image without any spread has a trace of 0


class LogitSampling:
    """Turn the Gaussian that an image's logits have into the logits and choices of N samples.

    The jitter d = 1e-6 trace(C) makes the samples' covariance s^2 (C + d I). Coupled as well as they can be, the logits
    with and without it differ by at most s sqrt(d) in root mean square in any direction, 0.1 % of the logits' whole
    spread s sqrt(trace(C)); in a direction with variance v the standard deviation grows by d / (2 v) of itself. Should
    rounding still leave no factor, it is d = 1e-4 trace(C), and 1 %.

    Owns the buffers that it returns, so that an image allocates next to nothing: use one in one thread.

    Args:
        num_samples: N, >= 1.
        num_classes: K, 2 to `MAX_CLASSES`.
    """

    def __init__(self, num_samples: int, num_classes: int) -> None:
        self.num_samples = num_samples
        self._num_classes = num_classes
        self._points = np.ones((1, num_samples, num_classes + 1), np.float32)
        self._resize(1)

    def draw(
        self,
        mean_logits: FloatArray,
        covariance: FloatArray,
        noise_scale: float,
        points: FloatArray | None,
        order: Order | None = None,
    ) -> tuple[FloatArray, IntArray]:
        """Give the logits mean_logits + noise_scale * A points, with A A^T = covariance, and their classes.

        A is the Cholesky factor: the first class depends on the first coordinate alone, and so on.

        Args:
            mean_logits: (B, K).
            covariance: (B, K, K), without the noise scale, positive semidefinite up to rounding.
            noise_scale: Factor on the standard deviation, finite and >= 0.
            points: (B or 1, N, K) standard normals; None takes those that were `fix`ed.
            order: (B, K) the classes in the order in which the factor takes them; None takes them as they come. With an
                order the two coordinates of two classes are turned, too. The distribution is the same in any case.

        Returns:
            The logits (B, N, K) float32, not finite where the Gaussian was not, and their arg-max (B, N) int64, where
            the lowest index wins a tie. Both are valid until the next call.

        Raises:
            InferenceError: The covariance is none.
        """
        if len(mean_logits) != len(self._logits):
            self._resize(len(mean_logits))
        if points is not None:
            self.fix(points)
        root = self._root(covariance, order)
        np.multiply(root.transpose(0, 2, 1), noise_scale, out=self._factor[:, 1:], casting="same_kind")
        self._factor[:, 0] = mean_logits
        np.matmul(self._points, self._factor, out=self._logits)
        self._logits.argmax(axis=2, out=self._choices)
        return self._logits, self._choices

    def fix(self, points: FloatArray) -> None:
        """Keep points for the draws to come; they are copied behind a one, which takes the mean logits.

        Args:
            points: As for `draw`.
        """
        if len(points) != len(self._points):
            self._points = np.ones((len(points), self.num_samples, self._num_classes + 1), np.float32)
        np.copyto(self._points[:, :, 1:], points)

    def _resize(self, batch: int) -> None:
        samples, classes = self.num_samples, self._num_classes
        self._logits = np.empty((batch, samples, classes), np.float32)
        self._choices = np.empty((batch, samples), np.int64)
        self._factor = np.empty((batch, 1 + classes, classes), np.float32)  # of mean logits and root
        self._matrix = np.empty((batch, classes, classes), np.float64)
        self._diagonal = np.einsum("bkk->bk", self._matrix)  # a view
        self._images = np.arange(batch)[:, None]

    def _root(self, covariance: FloatArray, order: Order | None) -> FactorArray:
        """Return A (B, K, K), its rows in the order of the classes."""
        if order is None:
            return self._lower(covariance)
        images = self._images
        lower = self._lower(covariance[images[:, :, None], order[:, :, None], order[:, None]])
        if self._num_classes == 2:
            lower = _along_the_difference(lower)
        self._matrix[images, order] = lower
        return self._matrix

    def _lower(self, covariance: FloatArray) -> FactorArray:
        """Return the Cholesky factor (B, K, K)."""
        np.copyto(self._matrix, covariance)
        try:
            return _factor(self._matrix, self._diagonal, JITTERS[0])
        except np.linalg.LinAlgError:
            # Image by image: what one of them needs must not change the votes of its neighbours.
            return np.concatenate([_lower_alone(one) for one in covariance[:, None]])


def _along_the_difference(root: FactorArray) -> FactorArray:
    """Turn the two coordinates (B, 2, 2) so that the first alone says which class is ahead: one dimension decides.

    A turned root is a root of the same covariance, so the distribution does not change; points, which fill a line more
    evenly than a plane, give the votes exactly.
    """
    first, second = ((root[:, 0] - root[:, 1]) / np.linalg.norm(root[:, 0] - root[:, 1], axis=1, keepdims=True)).T
    turn = np.stack([np.stack([first, -second], axis=1), np.stack([second, first], axis=1)], axis=1)
    return np.asarray(root @ turn, np.float64)


def _lower_alone(covariance: FloatArray) -> FactorArray:
    """Return the Cholesky factor (1, K, K) of one image, under the smallest jitter that leaves one."""
    for jitter in JITTERS:
        matrix = covariance.astype(np.float64)
        try:
            return _factor(matrix, np.einsum("bkk->bk", matrix), jitter)
        except np.linalg.LinAlgError:
            continue
    raise InferenceError(
        "the covariance of the logits is not positive semidefinite, so no logits can be drawn from it",
        "export the bundle again and verify it (flss-edge verify); reduced precision may have overflowed",
    )


def _factor(matrix: FactorArray, diagonal: FactorArray, jitter: float) -> FactorArray:
    """Add the jitter to the diagonal and return the Cholesky factor; in float64, as float32 would lose small pivots."""
    diagonal += jitter * diagonal.sum(axis=1, keepdims=True) + _TINY
    return np.asarray(np.linalg.cholesky(matrix), np.float64)

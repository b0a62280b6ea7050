"""A campaign: every planned attack on every batch of images, and what every classifier answers to the result.

The work comes in pieces, one an attack and a batch. A piece depends on nothing but the plan and the batch's earlier
pieces, so that batches can be made in any order, by several processes, and no piece twice: a campaign that was killed
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flss_edge.adversary import frozen
from flss_edge.attacks import PlannedAttack, Victim
from flss_edge.attacks.eot import ExpectationOverTransformation
from flss_edge.augment import to_float
from flss_edge.classifiers.answers import Answers, joined
from flss_edge.classifiers.selective import SelectiveClassifier
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws, seed_of
from flss_edge.robustness.state import Piece, State
from flss_runtime.errors import CheckFailed

ROUNDING = 1e-6  # of float32 sums of pixels; nothing an attack could use
AVERAGED = ("vote", "smoothing", "pixel-noise-vote")  # whose noise the gradients average over, if there is such a one
MOST_QUERIES = 1000  # noise counters that a probe may take for each image


class Probe(Protocol):
    """A measurement on a finished batch that needs the attacked images, such as asking again and again."""

    def __call__(
        self, images: Tensor, labels: Tensor, attacked: Mapping[str, Tensor], draws: Draws, first: int
    ) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Return arrays (B,) by name.

        Args:
            images: (B, 3, H, W) as they were.
            labels: (B,) int64.
            attacked: attack name -> (B, 3, H, W).
            draws: this batch's random numbers.
            first: the first of MOST_QUERIES * B noise counters that are this probe's own.
        """
        ...


@dataclass(frozen=True)
class Step:
    """A piece that was just finished: its attack, the passes an image it cost, and whether it was there already."""

    attack: str
    images: int
    passes: int
    loaded: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a campaign found.

    Attributes:
        labels: (n,) int64, the true classes.
        answers: classifier name -> attack name -> answers to all n images, in order.
        seconds: attack name -> time spent attacking, summed over processes.
        probed: probe name -> array name -> (n,) bool.
    """

    labels: npt.NDArray[np.int64]
    answers: Mapping[str, Mapping[str, Answers]]
    seconds: Mapping[str, float]
    probed: Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]


@dataclass(frozen=True)
class Campaign:
    """What is attacked, how, and on which images.

    Attributes:
        plan: attacks with different names, "clean" among them, each after those that it starts from.
        classifiers: with frozen thresholds; the path without sampling is that of the first.
        networks: every network behind them, in eval mode on `device`.
        images: of the networks' size.
        probes: measurements after the attacks of a batch, by name.
        seed: of the attacks' random numbers.
        batch_size: images at a time.
        device: where the networks are.
    """

    plan: Sequence[PlannedAttack]
    classifiers: Sequence[SelectiveClassifier]
    networks: Sequence[nn.Module]
    images: ImageSet
    probes: Mapping[str, Probe]
    seed: int
    batch_size: int
    device: torch.device

    def __post_init__(self) -> None:
        before: set[str] = set()
        for attack in self.plan:
            assert before.issuperset(attack.starts), f"{attack.name} comes before what it starts from"
            before.add(attack.name)

    @property
    def starts(self) -> range:
        """First image of each batch."""
        return range(0, len(self.images), self.batch_size)

    @property
    def passes(self) -> int:
        """Forward and backward passes of the whole campaign, counted as one image's each; for the time left."""
        return len(self.images) * sum(attack.passes for attack in self.plan)

    def run(self, state: State, *, rank: int = 0, count: int = 1) -> Iterator[Step]:
        """Make the missing pieces of every `count`-th batch, and yield after each piece.

        Raises:
            CheckFailed: an attack left the ball or the range of pixels, which is a defect of it.
        """
        with ExitStack() as stack:
            for network in self.networks:
                stack.enter_context(frozen(network))
            for number, start in enumerate(self.starts):
                if number % count == rank:
                    yield from self._batch(state, start)

    def outcome(self, state: State) -> Outcome:
        """Put the pieces of a finished campaign together."""
        answers: dict[str, dict[str, Answers]] = {each.name: {} for each in self.classifiers}
        seconds, probed = {}, {}
        for attack in self.plan:
            pieces = [state.load(attack.name, start) for start in self.starts]
            found = [piece for piece in pieces if piece is not None]
            for name, of in answers.items():
                of[attack.name] = joined([piece.answers[name] for piece in found])
            seconds[attack.name] = sum(piece.seconds for piece in found)
        for name in self.probes:
            arrays = [state.load_arrays(name, start) for start in self.starts]
            probed[name] = {key: np.concatenate([each[key] for each in arrays]) for key in arrays[0]}
        return Outcome(self.images.labels, answers, seconds, probed)

    def _batch(self, state: State, start: int) -> Iterator[Step]:
        images, labels = self._tensors(start)
        attacked: dict[str, Tensor] = {}
        for number, attack in enumerate(self.plan):
            piece = state.load(attack.name, start)
            loaded = piece is not None
            if piece is None:
                starts = [attacked[name] for name in attack.starts]
                piece = self._piece(attack, images, labels, starts, start, number)
                state.save(attack.name, start, piece)
            attacked[attack.name] = torch.from_numpy(piece.images).to(self.device)
            yield Step(attack.name, len(labels), attack.passes, loaded)
        for number, (name, probe) in enumerate(self.probes.items()):
            if not state.has_arrays(name, start):
                # Beyond every counter that an attack's answers took.
                first = len(self.plan) * len(self.images) + MOST_QUERIES * (number * len(self.images) + start)
                state.save_arrays(
                    name, start, probe(images, labels, attacked, self._draws(name, start, len(labels)), first)
                )
        state.finish_batch(start)

    def _piece(
        self, attack: PlannedAttack, images: Tensor, labels: Tensor, starts: Sequence[Tensor], start: int, number: int
    ) -> Piece:
        began = time.perf_counter()
        more: dict[str, Any] = {"starts": starts} if starts else {}
        draws = self._draws(attack.name, start, len(labels))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.seed, start, f"{attack.name} weights"))  # for noise in a network's weights
            victim = self._victim(attack, draws)
            attacked = attack.run(victim, images, labels, epsilon=attack.epsilon, draws=draws, **more)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        _check(attack, images, attacked)
        first = number * len(self.images) + start
        answers = {each.name: each.answer(attacked, first) for each in self.classifiers}
        return Piece(attacked.cpu().numpy(), answers, seconds)

    def _victim(self, attack: PlannedAttack, draws: Draws) -> Victim:
        by_name = {each.name: each for each in self.classifiers}
        chosen = by_name[attack.victim] if attack.victim else self.classifiers[0]
        if not attack.samples:
            return chosen
        noisy = next((by_name[name] for name in AVERAGED if name in by_name), chosen)
        return ExpectationOverTransformation(noisy, attack.samples, draws)

    def _draws(self, name: str, start: int, size: int) -> Draws:
        return Draws(seed_of(self.seed, 0, name), start, size, slice(0, size), self.device)

    def _tensors(self, start: int) -> tuple[Tensor, Tensor]:
        part = slice(start, start + self.batch_size)
        images = torch.from_numpy(self.images.images[part]).permute(0, 3, 1, 2).to(self.device)
        return to_float(images), torch.from_numpy(self.images.labels[part]).to(self.device)


def _check(attack: PlannedAttack, images: Tensor, attacked: Tensor) -> None:
    """Refuse images that the threat model does not allow: a figure from them would be worth nothing."""
    if attacked.shape != images.shape or not torch.isfinite(attacked).all():
        raise CheckFailed(f"{attack.name} gave images that are none", "Report this attack; its figures would be wrong.")
    distance = float((attacked - images).abs().max()) if attack.bounded else 0.0
    low, high = float(attacked.min()), float(attacked.max())
    if distance > attack.epsilon + ROUNDING or low < 0 or high > 1:
        raise CheckFailed(
            f"{attack.name} moved a pixel by {distance * 255:.4g}/255 (allowed {attack.epsilon * 255:.4g}/255), "
            f"to values in [{low:.4g}, {high:.4g}]",
            "Report this attack; its figures would be wrong.",
        )

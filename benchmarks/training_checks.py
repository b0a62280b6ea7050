"""What benchmarks/training.py checks and counts beside the clock: equal results, passes, FLOPs, stages of an update."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from literal_update import literal_update
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, Encoder, ModelConfig
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import TrainConfig
from flss_edge.trainer import Trainer
from flss_edge.update import Update
from flss_runtime.errors import CheckFailed

TOLERANCE = 1e-9
# A pass without weight gradients costs the forward pass and the gradients of the activations, without: all three.
UNIT_WITHOUT_WEIGHT_GRADIENTS = 2 / 3

STAGES = ("augmentation", "attack", "weight perturbation", "first update", "second update")
Stages: TypeAlias = dict[str, float]


def check_equal_results(data: ImageSet, device: str) -> dict[str, Any]:
    """Train a small network in float64 both ways on two mini-batches, the second one incomplete, and compare.

    Returns:
        The largest differences of losses, weights and running statistics.

    Raises:
        CheckFailed: one of them is above 1e-9.
    """
    recipe = recipe_named("official")
    recipe = replace(recipe, config=replace(recipe.config, batch_size=8, attack_steps=3))
    config: Any = recipe.config
    torch.manual_seed(0)
    network = FLSS(ModelConfig(num_classes=len(data.class_names), width=4, image_size=data.images.shape[1]))
    fast = network.to(device).double()
    literal = copy.deepcopy(fast)
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.85, weight_decay=5e-4) for net in (fast, literal)
    ]
    update = Update(fast, optimizers[0], recipe)
    differences: dict[str, float] = {"loss": 0.0, "weights": 0.0, "running_statistics": 0.0}
    for step, size in enumerate((8, 5)):
        rows = slice(8 * step, 8 * step + size)
        images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).to(device).double() / 255
        labels = torch.from_numpy(data.labels[rows]).to(device)
        draws = Draws(1, step, size, slice(0, size), torch.device(device), torch.float64)
        terms = update([Minibatch(images, labels, draws, 0.5, nominal=8)])
        expected = literal_update(literal, optimizers[1], images, labels, draws, config, 0.5)
        for name, value in expected.items():
            differences["loss"] = max(differences["loss"], abs(float(terms[name]) - value))
    for (name, value), other in zip(fast.state_dict().items(), literal.state_dict().values(), strict=True):
        if "num_batches_tracked" not in name:  # counts calls, which differ; batch norm never reads it here
            kind = "running_statistics" if "running" in name else "weights"
            differences[kind] = max(differences[kind], float((value - other).abs().max()))
    if not all(value <= TOLERANCE for value in differences.values()):  # NaN fails too
        raise CheckFailed(
            f"the fast path does not give the literal path's results: {differences}",
            "Times of unequal procedures say nothing: run tests/edge/test_update.py and mend the update first.",
        )
    return {"dtype": "float64", "mini_batches": 2, "tolerance": TOLERANCE, "largest_difference": differences}


def passes_by_hand(config: TrainConfig) -> dict[str, dict[str, int]]:
    """Return how often an image goes through the encoder in one update, counted by hand (docs: method, section 2).

    literal: attack steps + 4 for the proxy + 4 for the first update + 2 for the second, each with weight gradients.
    fast: attack steps without weight gradients + 2 + 2 + 1.
    """
    steps = config.attack_steps
    return {
        "literal": {"forward": steps + 10, "backward": steps + 10, "with_weight_gradients": steps + 10},
        "fast": {"forward": steps + 5, "backward": steps + 5, "with_weight_gradients": 5},
    }


def count_work(update: Callable[[int], None], trainer: Trainer, by_hand: dict[str, int]) -> dict[str, Any]:
    """Count the encoder's passes and the arithmetic of one update.

    Returns:
        `counted` and `by_hand` passes an image; `units`, the same cost in passes with all gradients; `flops` of the
        whole update (convolutions and matrix products, 2 a multiply-add).

    Raises:
        CheckFailed: the passes are not those counted by hand.
    """
    counts = {"forward": 0, "backward": 0}

    def backward(gradient: Tensor) -> None:
        counts["backward"] += 1

    def forward(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if isinstance(module, Encoder):  # also the copy that the literal procedure makes
            counts["forward"] += 1
            outputs[0].register_hook(backward)  # the mean takes part in every loss

    handle = register_module_forward_hook(forward)
    try:
        with _Arithmetic() as arithmetic:
            update(0)
    finally:
        handle.remove()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in trainer.network.modules())
    full = arithmetic.weight_gradients // convolutions
    counted = {**counts, "with_weight_gradients": full}
    if counted != by_hand:
        raise CheckFailed(
            f"one update makes {counted} encoder passes an image, by hand it is {by_hand}",
            "Correct whichever is wrong: the update, or passes_by_hand in benchmarks/training_checks.py.",
        )
    units = full + UNIT_WITHOUT_WEIGHT_GRADIENTS * (counts["backward"] - full)
    return {"counted": counted, "by_hand": by_hand, "units": units, "flops": arithmetic.flops}


class _Arithmetic(TorchDispatchMode):
    """Count FLOPs by torch's own formulas, and the gradients of convolution weights that are computed, kept or not.

    FlopCounterMode itself also follows the modules, and its hooks refuse torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.weight_gradients = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:  # output_mask: input, weight, bias
            self.weight_gradients += 1
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def stages_of(trainer: Trainer, batch_of: Callable[[int], Minibatch], warm_up: int, count: int) -> list[Stages]:
    """Return milliseconds of each stage of `count` updates of the fast path, waiting for the device at each mark."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    rows = []
    with _marked(trainer, mark) as update:
        for step in range(warm_up + count):
            marks.clear()
            mark()
            batch = batch_of(step)
            mark()
            update([batch])
            if step >= warm_up:
                durations = [(after - before) * 1e3 for before, after in pairwise(marks)]
                rows.append(dict(zip(STAGES, durations, strict=True)))
    return rows


@contextmanager
def _marked(trainer: Trainer, mark: Callable[..., None]) -> Iterator[Update]:
    """Yield the trainer's update with a mark at the end of each stage, set from outside: attack, losses, optimiser."""
    recipe = trainer.recipe
    attack, first = recipe.attack, recipe.losses[0]
    assert attack is not None

    def timed_attack(network: Any, batch: Minibatch, config: Any) -> Minibatch:
        perturbed = attack(network, batch, config)
        mark()
        return perturbed

    @functools.wraps(first)
    def timed_first(network: Any, batch: Minibatch, config: Any) -> dict[str, Tensor]:
        if not batch.proxy:  # called for the update itself: the weights are perturbed by now
            mark()
        return first(network, batch, config)

    handle = trainer.optimizer.register_step_post_hook(mark)
    try:
        timed = replace(recipe, attack=timed_attack, losses=(timed_first, *recipe.losses[1:]))
        yield Update(trainer.network, trainer.optimizer, timed)
    finally:
        handle.remove()

"""Precision, compilation, and a device that is never waited for without need."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from flss_edge import update as update_module
from flss_edge.checkpoint import load_checkpoint
from flss_edge.evaluation import accuracy
from flss_edge.hardware import Hardware
from flss_edge.model import ModelConfig
from flss_edge.recipes import RECIPES
from flss_edge.trainer import STEPS_BETWEEN_LOGS, Trainer
from flss_runtime.errors import UsageError

from .small_runs import OFFICIAL_MODEL, RUNS, bars, official_run, recipe, records, small_data


def test_an_unknown_precision_and_no_parts_are_refused() -> None:
    with pytest.raises(UsageError, match="precision is 'fp16'") as failure:
        Hardware(precision="fp16").prepare()
    assert "bf16" in failure.value.fix
    with pytest.raises(UsageError, match="accumulate is 0"):
        Hardware(accumulate=0).prepare()
    assert Hardware().prepare() == torch.device("cpu")


@pytest.mark.parametrize("name", RUNS)
def test_bf16_is_inside_the_backbone_only(name: str, tmp_path: Path) -> None:
    """What each layer returns in attack, weight perturbation and both updates, and what the losses are made of."""
    trainer = RUNS[name](tmp_path, Hardware(precision="bf16"), awp_start=0.0)
    network = trainer.network
    seen: dict[str, set[torch.dtype]] = {}

    def note(key: str, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            seen.setdefault(key, set()).add(tensor.dtype)

    for path, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) or path == "encoder":
            key = "convolution" if isinstance(module, nn.Conv2d) else path
            module.register_forward_hook(lambda _, __, output, key=key: note(key, output))
    features = network.encoder.features
    network.encoder.features = lambda images: watched(features(images))

    def watched(value: Tensor) -> Tensor:
        note("features", value)
        return value

    for step in range(2):
        trainer.step = step
        for key, term in trainer.update(trainer.loader.parts(torch.arange(10), trainer.step)).items():
            note(f"loss {key}", term)
    assert seen.pop("convolution") == {torch.bfloat16}
    assert {"encoder", "encoder.mean", "encoder.logvar", "head.0", "features", "loss clean_loss"} <= set(seen)
    assert set().union(*seen.values()) == {torch.float32}, seen
    for name, value in network.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name
    momenta = [state["momentum_buffer"].dtype for state in trainer.optimizer.state.values()]
    assert set(momenta) == {torch.float32}
    assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {torch.float32}


def test_float32_is_the_default(tmp_path: Path) -> None:
    trainer = official_run(tmp_path)
    (part,) = trainer.loader.parts(torch.arange(10), trainer.step)
    with torch.no_grad():
        assert trainer.network.encoder.conv1(part.images).dtype == torch.float32
    assert trainer.network.encoder.autocast is None


def test_a_short_training_in_bf16_learns(tmp_path: Path) -> None:
    config = recipe("official", epochs=3, crop_padding=0, peak_lr=0.02)
    trainer = Trainer(config, OFFICIAL_MODEL, small_data(90), tmp_path, hardware=Hardware(precision="bf16"))
    checkpoint = load_checkpoint(trainer.run())
    assert checkpoint.training["precision"] == "bf16"
    assert accuracy(checkpoint.model, bars(120, 2)) > 0.8


class Waits(TorchDispatchMode):
    """Notes every operation whose result depends on a tensor's values being known to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique2"):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def steps(trainer: Trainer, count: int) -> None:
    for _ in range(count):
        trainer._train_on(torch.arange(10, device=trainer.device), lambda record: None)


def tiny_run(name: str, folder: Path, hardware: Hardware) -> Trainer:
    """A run of any recipe, with weight perturbation and moving average, and all that its first update can have."""
    chosen = recipe(name, awp_start=0.0, ema_decay=0.9, epochs=5)
    shape = {**chosen.network, "num_classes": 3, "width": 8, "image_size": 16, "blocks": (1, 1)}
    return Trainer(chosen, ModelConfig(**shape), small_data(), folder, hardware=hardware)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_between_logs_waits_for_the_device(
    name: str, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weight perturbation, moving average and second view; only a step that logs reads values."""
    trainer = tiny_run(name, tmp_path, Hardware(accumulate=accumulate))
    copied: list[str] = []
    for method in ("tolist", "numpy", "cpu"):  # no operations of their own on a CPU
        original = getattr(Tensor, method)
        noted = lambda *a, method=method, original=original: (copied.append(method), original(*a))[1]  # noqa: E731
        monkeypatch.setattr(Tensor, method, noted)
    with Waits() as waits:
        steps(trainer, 3)
        assert (waits.seen, copied) == ([], [])
        trainer.step = STEPS_BETWEEN_LOGS - 1
        steps(trainer, 1)
    assert len(waits.seen) == len(records(tmp_path)[0]) - len(("event", "step", "total_steps", "lr", "momentum"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_between_logs_waits_for_a_gpu(name: str, precision: str, tmp_path: Path) -> None:
    """As torch itself sees it."""
    trainer = tiny_run(name, tmp_path, Hardware("cuda", precision, accumulate=2))
    steps(trainer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        steps(trainer, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.run()


def ends_of(name: str, folder: Path, compiled: bool, sizes: tuple[int, ...]) -> tuple[dict[str, Tensor], Trainer]:
    """The terms of the last mini-batch, and the run after it."""
    trainer = RUNS[name](folder, Hardware(compile=compiled), awp_start=0.0)
    terms: dict[str, Tensor] = {}
    for step, size in enumerate(sizes):
        trainer.step = step
        for group in trainer.optimizer.param_groups:
            group["lr"], group["momentum"] = 0.01, 0.9
        terms = trainer.update(trainer.loader.parts(torch.arange(size), trainer.step))
    return terms, trainer


def assert_agree(name: str, folder: Path, sizes: tuple[int, ...]) -> Trainer:
    """A compiled run equals the eager one but for rounding, and all of it was compiled; return it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager_terms, eager = ends_of(name, folder, False, sizes)
    terms, compiled = ends_of(name, folder, True, sizes)
    for key, value in eager_terms.items():
        assert float(terms[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), key
    state = compiled.network.state_dict()
    for key, value in eager.network.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    return compiled


def graphs() -> int:
    """How many graphs were made; none was refused, for there being too many or for what is in them."""
    frames = torch._dynamo.utils.counters["frames"]
    assert frames["total"] == frames["ok"]
    return int(frames["ok"])


@pytest.mark.slow
def test_a_compiled_run_agrees_with_the_eager_one(tmp_path: Path) -> None:
    """Two mini-batches, weight perturbation included; the compiler takes a minute or more."""
    assert_agree("official", tmp_path, (10, 10))
    assert graphs() == 4  # eval, and train with three momenta


@pytest.mark.slow
def test_a_run_with_everything_is_compiled_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of batch norms, an incomplete mini-batch, a measurement: more graphs than torch allows by itself.

    The graphs are captured but run as they are, which is quicker than compiling them.
    """
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: whole(self, backend="eager", **options))
    trainer = assert_agree("plus", tmp_path, (10, 10, 5, 10))
    trainer.average = None
    trainer._measure(1, lambda: False)
    assert graphs() > 8


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_compiled_attack_computes_no_weight_gradient(
    frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the backward graphs ask of each convolution; without `frozen` the compiler computes everything."""
    torch._dynamo.reset()
    masks: list[list[bool]] = []

    def note(graph: GraphModule, inputs: Any) -> Any:
        masks.extend(node.args[-1] for node in graph.graph.nodes if "convolution_backward" in str(node.target))
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph), bw_compiler=note)
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: whole(self, backend=backend, **options))
    if not frozen:
        monkeypatch.setattr(update_module, "frozen", lambda network: nullcontext())
    trainer = official_run(tmp_path, Hardware(compile=True))
    attack = trainer.recipe.attack
    assert attack is not None
    of_the_attack: list[bool] = []

    def noted(*arguments: Any) -> Any:
        attacked = attack(*arguments)
        of_the_attack.extend(weight for _, weight, _ in masks)
        return attacked

    trainer.update.recipe = replace(trainer.recipe, attack=noted)
    trainer.update(trainer.loader.parts(torch.arange(10), 0))
    assert of_the_attack and any(of_the_attack) != frozen
    of_the_training = [weight for _, weight, _ in masks[len(of_the_attack) :]]
    assert of_the_training and all(of_the_training)

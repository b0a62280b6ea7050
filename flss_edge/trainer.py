"""The training loop: epochs of `Update`, checkpoint selection, a state file that survives kill -9."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flss_edge import batch_norm
from flss_edge.averaging import MovingAverage
from flss_edge.checkpoint import Checkpoint, save_checkpoint
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.hardware import Hardware
from flss_edge.loader import Loader
from flss_edge.minibatch import seed_of
from flss_edge.model import ModelConfig, backbone, build_network
from flss_edge.recipes.config import Recipe
from flss_edge.run_folder import restore_best, tidy
from flss_edge.run_state import read_state, write_state
from flss_edge.training_data import TrainingData, check_fit
from flss_edge.update import Update
from flss_edge.weight_noise import parameter_groups
from flss_runtime.errors import CheckFailed, OutputError

STEPS_BETWEEN_LOGS = 20
SELECTION_STEP_SIZE = 2 / 255

Report = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


class Trainer:
    """One training run in one folder: log.jsonl, state.pt (for resuming), best.pt and last.pt.

    Every random number is a function of `seed`, the mini-batch and what it is for, so there is no random state to save:
    on the CPU a resumed run ends bit for bit where the uninterrupted one ends, given the same number of threads.
    """

    def __init__(
        self,
        recipe: Recipe,
        model_config: ModelConfig,
        data: TrainingData,
        folder: Path,
        *,
        hardware: Hardware | None = None,
        save_every: float = 120.0,
    ) -> None:
        """Build the network and its optimiser; nothing is read or written yet.

        Args:
            recipe: what to train, and with which settings.
            model_config: the network.
            data: what to train on and what to choose the checkpoint with.
            folder: an existing folder for the run's files.
            hardware: by default one process on the CPU in float32.
            save_every: seconds between saved states within an epoch.
        """
        self.hardware = hardware or Hardware()
        check_fit(recipe, model_config, data, self.hardware.parts)
        self.recipe, self.config, self.data = recipe, recipe.config, data
        self.folder, self.save_every = Path(folder), save_every
        self.device = self.hardware.prepare()
        torch.manual_seed(self.config.seed)
        # Channels last is about a tenth faster on a CPU. With fewer than 8 channels torch 2.15 writes past a buffer
        # (weight gradient of the 1x1 stride-2 convolution, seen with glibc's malloc checks), so odd widths go without.
        layout = torch.contiguous_format if model_config.width % 8 else torch.channels_last
        network = build_network(model_config)
        if self.config.second_norms:
            batch_norm.add_second(network)
        self.network = network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        decay = self.config.ema_decay
        self.average = MovingAverage(self.network, decay) if decay else None
        for each in (self.network, *([self.average.network] if self.average else [])):
            backbone(each).autocast = torch.bfloat16 if self.hardware.precision == "bf16" else None
        if self.hardware.compile:
            backbone(self.network).compile(dynamic=False)  # else an incomplete mini-batch makes all later ones slower
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.network, self.config.weight_decay),
            lr=0.0,
            momentum=self.config.momentum,
            nesterov=self.config.nesterov,
        )
        self.update = Update(self.network, self.optimizer, recipe, self.hardware.processes)
        self.loader = Loader(data.fit, self.config, self.hardware, layout)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = self.config.epochs * self.steps_per_epoch
        self.step = 0
        self.evaluated = 0  # epochs
        self.best: dict[str, Any] = {}
        self._images_since_log, self._timed_from, self._saved_at = 0, 0.0, 0.0

    def run(self, report: Report = lambda record: None, stop: Callable[[], bool] = lambda: False) -> Path:
        """Train from where the run stands to the end and return the path of the selected checkpoint.

        Args:
            report: called with every log record, a dict with "event" "step" or "epoch"; in the first process only.
            stop: asked after every mini-batch and between the batches of an evaluation; where it says yes, the state is
                saved and the run ends.

        Raises:
            CheckFailed: the loss is no longer finite.
            OutputError: the folder cannot be written.
            Stopped: `stop` said so.
        """
        self._saved_at = time.monotonic()
        try:
            while self.step < self.total_steps or self.evaluated < self.config.epochs:
                epoch, position = divmod(self.step, self.steps_per_epoch)
                if self.evaluated < epoch:
                    self._finish_epoch(epoch, report, stop)
                else:
                    self._train_epoch(epoch, position, report, stop)
        except Stopped:
            self.save()
            raise
        return self.folder / "best.pt"

    def save(self) -> None:
        """Write state.pt atomically: a kill at any moment leaves the old state or the new one.

        Raises:
            CheckFailed: the network diverged since the loss was last looked at; the old state stays.
            OutputError: the folder cannot be written.
        """
        self._check_finite()
        self._saved_at = time.monotonic()
        if not self.hardware.processes.first:
            return
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(self.folder / "state.pt", self._identity(), state)

    def resume(self) -> bool:
        """Continue from state.pt if there is one, else from step 0; return whether there was.

        Either way the folder is brought to the state's moment: later log records and half-written files go, and best.pt
        is the epoch that the state names.

        Raises:
            UsageError: the state belongs to another recipe, network or data set.
            CheckpointError: it cannot be read, or best.pt is gone.
        """
        path = self.folder / "state.pt"
        if resumed := path.exists():
            state = read_state(path, self._identity(), self.device)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.network.load_state_dict(state["average"])
            self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        if self.hardware.processes.first:
            tidy(self.folder, self.step, self.evaluated)
            if self.best:
                restore_best(self.folder, self.best["epoch"])
        self.hardware.processes.any(False)  # nobody goes on, and saves anew, before everybody has read
        return resumed

    def _train_epoch(self, epoch: int, position: int, report: Report, stop: Callable[[], bool]) -> None:
        order = self.loader.order(epoch)
        self._images_since_log, self._timed_from = 0, time.perf_counter()
        for index in range(position, self.steps_per_epoch):
            self._train_on(order[index], report)
            # Asking all processes waits for the device, so several of them stop at a log record only.
            alone = self.hardware.processes.count == 1
            if (alone or self.step % STEPS_BETWEEN_LOGS == 0) and self.hardware.processes.any(stop()):
                raise Stopped
            if index + 1 < self.steps_per_epoch and time.monotonic() - self._saved_at > self.save_every:
                self.save()

    def _train_on(self, index: Tensor, report: Report) -> None:
        lr, momentum = self.config.learning_rate(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = lr, momentum
        torch.manual_seed(seed_of(self.config.seed, self.step, "network"))  # noise inside a network, if it has any
        terms = self.update(self.loader.parts(index, self.step))
        if self.average:
            self.average.follow(self.network, self.step)
        self.step += 1
        self._images_since_log += len(index)
        if self.step % STEPS_BETWEEN_LOGS and self.step != self.total_steps:
            return  # reading the terms waits for the device, so not every step does
        self.hardware.processes.add(list(terms.values()))
        values = {name: float(value) for name, value in terms.items()}
        if not all(value == value and abs(value) < float("inf") for value in values.values()):
            raise _diverged(f"the loss is no longer finite at step {self.step} ({values})")
        now = time.perf_counter()
        rate = self._images_since_log / (now - self._timed_from)
        self._images_since_log, self._timed_from = 0, now
        record = {"event": "step", "step": self.step, "total_steps": self.total_steps}
        self._log({**record, "lr": lr, "momentum": momentum, **values, "images_per_s": rate}, report)

    def _finish_epoch(self, epoch: int, report: Report, stop: Callable[[], bool]) -> None:
        """Measure the epoch on the selection images and keep it where it is the best so far."""
        self._check_finite()
        record: dict[str, Any] = {}
        stopped = False
        if self.hardware.processes.first:
            try:
                record = {"epoch": epoch, **self._measure(epoch, stop)}
            except Stopped:
                stopped = True
        if self.hardware.processes.any(stopped):  # the others wait here for the first, which measures
            raise Stopped
        self.evaluated = epoch
        if not self.hardware.processes.first:
            return
        last = self._checkpoint(record)
        score = {"pgd": "selection_pgd_accuracy", "clean": "selection_accuracy", "last": "epoch"}[self.config.selection]
        improved = not self.best or record[score] > self.best[score]  # ties keep the earliest, as released
        if improved:
            self.best = record
        save_checkpoint(self.folder / "last.pt", last)
        self._log({"event": "epoch", "step": self.step, **record, "best_epoch": self.best["epoch"]}, report)
        self.save()  # from here on this epoch is done: whatever a kill leaves undone below, `resume` makes up for
        if improved:
            save_checkpoint(self.folder / "best.pt", last)

    def _measure(self, epoch: int, stop: Callable[[], bool]) -> dict[str, float]:
        def between_batches() -> None:
            if stop():
                raise Stopped

        network = self.average.network if self.average else self.network
        settings: dict[str, Any] = {
            "seed": self.config.seed + epoch,
            "batch_size": -(-self.config.batch_size // self.hardware.parts),  # what fits in memory for the training
            "between_batches": between_batches,
        }
        attack: dict[str, Any] = {
            "epsilon": self.config.epsilon,
            "step_size": SELECTION_STEP_SIZE,
            "steps": self.config.selection_steps,
        }
        return {
            "selection_accuracy": accuracy(network, self.data.selection, **settings),
            "selection_pgd_accuracy": pgd_accuracy(network, self.data.selection, **attack, **settings),
        }

    def _checkpoint(self, record: dict[str, Any]) -> Checkpoint:
        training = {
            "config": self.config.to_json(),
            "precision": self.hardware.precision,
            "parts": self.hardware.parts,
            "data": self.data.fit.source,
            "data_sha256": self.data.fit.sha256,
            "selection_sha256": self.data.selection.sha256,
            "validation_per_class": self.data.validation_per_class,
            **record,
        }
        network = self.average.network if self.average else self.network
        return Checkpoint(network, self.data.fit.class_names, training=training)

    def _identity(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "model": self.network.config.to_json(),
            "precision": self.hardware.precision,
            "parts": self.hardware.parts,
            "data": self.data.fit.sha256,
            "selection": self.data.selection.sha256,
        }

    def _log(self, record: dict[str, Any], report: Report) -> None:
        if not self.hardware.processes.first:
            return
        path = self.folder / "log.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}", "Make room or access, then give the same command again."
            ) from error
        report(record)

    def _check_finite(self) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values()):
            raise _diverged(f"the weights are no longer finite at step {self.step}")


def _diverged(problem: str) -> CheckFailed:
    return CheckFailed(
        problem, "Lower peak_lr (--set peak_lr=0.05) or the KL weights; the last saved state is from before."
    )

"""The training loop: epochs of `Update`, checkpoint selection by PGD accuracy, a state file that survives kill -9."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flss_edge.augment import augment
from flss_edge.checkpoint import Checkpoint, save_checkpoint, torch_bytes
from flss_edge.data import ImageSet
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.model import FLSS, ModelConfig
from flss_edge.recipes import TrainConfig
from flss_edge.run_folder import restore_best, tidy
from flss_edge.schedule import triangular
from flss_edge.update import Update
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import CheckFailed, CheckpointError, DataError, OutputError, UsageError

STATE_VERSION = 1
STEPS_BETWEEN_LOGS = 20
SELECTION_STEP_SIZE = 2 / 255

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The images that are trained on, and those that choose the checkpoint; they share no image.

    `validation_per_class` says how the split was made, so that calibration can find its own half later.
    """

    fit: ImageSet
    selection: ImageSet
    validation_per_class: int | None = None


class Trainer:
    """One training run in one folder: log.jsonl, state.pt (for resuming), best.pt and last.pt.

    Every random number comes from `seed`: the order of epoch e from a generator of its own, everything else from one
    generator whose state is saved. On the CPU a resumed run therefore ends bit for bit where the uninterrupted one
    ends, given the same number of threads.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        data: TrainingData,
        folder: Path,
        *,
        device: str = "cpu",
        save_every: float = 120.0,
    ) -> None:
        """Build the network and its optimiser; nothing is read or written yet.

        Args:
            config: the recipe.
            model_config: the network.
            data: what to train on and what to choose the checkpoint with.
            folder: an existing folder for the run's files.
            device: torch's name of it.
            save_every: seconds between saved states within an epoch.
        """
        _check(config, model_config, data)
        self.config, self.data, self.folder = config, data, Path(folder)
        self.device, self.save_every = torch.device(device), save_every
        torch.manual_seed(config.seed)
        # Channels last is about a tenth faster on a CPU. With fewer than 8 channels torch 2.15 writes past a buffer
        # (weight gradient of the 1x1 stride-2 convolution, seen with glibc's malloc checks), so odd widths go without.
        self.layout = torch.contiguous_format if model_config.width % 8 else torch.channels_last
        self.model = FLSS(model_config).to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, weight_decay=config.weight_decay)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.update = Update(self.model, self.optimizer, config, self.generator)
        self.images = torch.from_numpy(data.fit.images).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.labels = torch.from_numpy(data.fit.labels).to(self.device)
        self.steps_per_epoch = -(-len(data.fit) // config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.best: dict[str, Any] = {}
        self._images_since_log, self._timed_from = 0, 0.0

    def run(self, report: Report = lambda record: None) -> Path:
        """Train from where the run stands to the end and return the path of the selected checkpoint.

        Args:
            report: called with every log record, a dict with "event" "step" or "epoch".

        Raises:
            CheckFailed: the loss is no longer finite.
            OutputError: the folder cannot be written.
        """
        saved_at = time.monotonic()
        while self.step < self.total_steps:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            order = self._order(epoch)
            self._images_since_log, self._timed_from = 0, time.perf_counter()
            for index in range(position, self.steps_per_epoch):
                self._train_on(order[index * self.config.batch_size : (index + 1) * self.config.batch_size], report)
                if index + 1 < self.steps_per_epoch and time.monotonic() - saved_at > self.save_every:
                    self.save()
                    saved_at = time.monotonic()
            self._finish_epoch(epoch + 1, report)
            saved_at = time.monotonic()
        return self.folder / "best.pt"

    def save(self) -> None:
        """Write state.pt atomically: a kill at any moment leaves the old state or the new one.

        Raises:
            CheckFailed: the network diverged since the loss was last looked at; the old state stays.
            OutputError: the folder cannot be written.
        """
        self._check_finite()
        state = {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        with atomic_write(self.folder / "state.pt") as temporary:
            temporary.write_bytes(torch_bytes(state))

    def resume(self) -> bool:
        """Continue from state.pt if there is one, else from step 0; return whether there was.

        Either way the folder is brought to the state's moment: later log records and half-written files go, and best.pt
        is the epoch that the state names.

        Raises:
            UsageError: the state belongs to another recipe, network or data set.
            CheckpointError: it cannot be read, or best.pt is gone.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            tidy(self.folder, self.step)
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            version, identity = state["version"], state["identity"]
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__})", "Start anew with --overwrite."
            ) from error
        if version != STATE_VERSION:
            raise CheckpointError(
                f"{path} has state format {version}; this version reads format {STATE_VERSION}",
                "Finish the run with the flss-edge version that began it, or start anew with --overwrite.",
            )
        different = [key for key, value in self._identity().items() if identity.get(key) != value]
        if different:
            raise UsageError(
                f"{self.folder} holds a run with other settings ({', '.join(different)})",
                "Repeat the settings it was started with, choose another --output, or start anew with --overwrite.",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.best = state["step"], state["best"]
        tidy(self.folder, self.step)
        if self.best:
            restore_best(self.folder, self.best["epoch"])
        return True

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.data.fit), generator=generator)

    def _train_on(self, index: Tensor, report: Report) -> None:
        config = self.config
        momentum = (config.momentum_base, config.momentum_peak)
        lr, momentum_now = triangular(self.step, self.total_steps, config.peak_lr, momentum)
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = lr, momentum_now
        index = index.to(self.device)
        images = augment(self.images[index], config.crop_padding, config.flip, self.generator)
        images = images.contiguous(memory_format=self.layout)
        terms = self.update(images, self.labels[index], self.step / self.total_steps)
        self.step += 1
        self._images_since_log += len(index)
        if self.step % STEPS_BETWEEN_LOGS and self.step != self.total_steps:
            return  # reading the terms waits for the device, so not every step does
        values = {name: float(value) for name, value in terms.items()}
        if not all(value == value and abs(value) < float("inf") for value in values.values()):
            raise _diverged(f"the loss is no longer finite at step {self.step} ({values})")
        now = time.perf_counter()
        rate = self._images_since_log / (now - self._timed_from)
        self._images_since_log, self._timed_from = 0, now
        record = {"event": "step", "step": self.step, "total_steps": self.total_steps}
        self._log({**record, "lr": lr, "momentum": momentum_now, **values, "images_per_s": rate}, report)

    def _finish_epoch(self, epoch: int, report: Report) -> None:
        self._check_finite()
        seed = self.config.seed + epoch
        clean = accuracy(self.model, self.data.selection)
        robust = pgd_accuracy(
            self.model,
            self.data.selection,
            epsilon=self.config.epsilon,
            step_size=SELECTION_STEP_SIZE,
            steps=self.config.selection_steps,
            seed=seed,
        )
        record = {"epoch": epoch, "selection_accuracy": clean, "selection_pgd_accuracy": robust}
        last = self._checkpoint(record)
        improved = not self.best or robust > self.best["selection_pgd_accuracy"]  # ties keep the earliest, as released
        if improved:
            self.best = record
        save_checkpoint(self.folder / "last.pt", last)
        self._log({"event": "epoch", "step": self.step, **record, "best_epoch": self.best["epoch"]}, report)
        self.save()  # from here on this epoch is done: whatever a kill leaves undone below, `resume` makes up for
        if improved:
            save_checkpoint(self.folder / "best.pt", last)

    def _checkpoint(self, record: dict[str, Any]) -> Checkpoint:
        training = {
            "config": self.config.to_json(),
            "data": self.data.fit.source,
            "data_sha256": self.data.fit.sha256,
            "selection_sha256": self.data.selection.sha256,
            "validation_per_class": self.data.validation_per_class,
            **record,
        }
        return Checkpoint(self.model, self.data.fit.class_names, training=training)

    def _identity(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "model": self.model.config.to_json(),
            "data": self.data.fit.sha256,
            "selection": self.data.selection.sha256,
        }

    def _log(self, record: dict[str, Any], report: Report) -> None:
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
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise _diverged(f"the weights are no longer finite at step {self.step}")


def _diverged(problem: str) -> CheckFailed:
    return CheckFailed(
        problem, "Lower peak_lr (--set peak_lr=0.05) or the KL weights; the last saved state is from before."
    )


def _check(config: TrainConfig, model_config: ModelConfig, data: TrainingData) -> None:
    names = data.fit.class_names
    if len(names) != model_config.num_classes:
        raise UsageError(
            f"the data has {len(names)} classes, the network {model_config.num_classes}",
            "Leave the number of classes to the data, or give a data set that fits.",
        )
    highest = int(data.fit.labels.max())
    if highest >= len(names):
        raise DataError(f"the label {highest} occurs, but there are {len(names)} classes", "Number classes from 0.")
    counts = torch.bincount(torch.from_numpy(data.fit.labels), minlength=len(names))
    if empty := [names[k] for k in range(len(names)) if counts[k] == 0]:
        raise DataError(f"no training image of class {empty[0]}", "Add images of it or leave the class out.")
    if len(data.fit) % config.batch_size == 1:
        raise UsageError(
            f"the last mini-batch of {len(data.fit)} images has a single one", "Choose another --set batch_size=."
        )
    size = (model_config.image_size, model_config.image_size)
    if data.fit.images.shape[1:3] != size:
        raise UsageError(
            f"images are {data.fit.images.shape[1:3]}, the network takes {size}", "Set --image-size to the data's size."
        )

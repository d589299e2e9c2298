"""The state of a training: everything that the next step depends on."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mnist_exp.errors import Failure
from mnist_exp.training.losses import CrossEntropy
from mnist_exp.training.metrics import DEFAULT_METRICS, Epoch, Metric, Metrics, Monitor
from mnist_exp.training.precision import FLOAT32, Precision

NO_CALLBACKS: Mapping[str, Any] = {}


class Diverged(Failure):
    """The loss is no longer finite."""


class TrainState:
    """What a checkpoint saves and a resumed training loads.

    ema: an exponential moving average of the model, which is then what is evaluated and kept.
    precision: has the gradient scaler. metrics, callbacks: by their names; see `metrics` and
    `callbacks`. monitor: decides which epoch is the best.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        ema: AveragedModel | None = None,
        precision: Precision = FLOAT32,
        loss: nn.Module | None = None,
        metrics: Mapping[str, Metric] = DEFAULT_METRICS,
        monitor: Monitor = Monitor(),  # noqa: B008  immutable
        callbacks: Mapping[str, Any] = NO_CALLBACKS,
    ) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.ema, self.precision = ema, precision
        self.loss = CrossEntropy() if loss is None else loss
        self.metrics, self.callbacks = metrics, callbacks
        self.progress = Progress(model, monitor)

    @property
    def scaler(self) -> GradScaler:
        return self.precision.scaler

    @property
    def averaged_model(self) -> nn.Module:
        """The model, or its average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors, with the states of all global random generators."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": self.progress.state_dict(),
            "callbacks": {
                name: callback.state_dict()
                for name, callback in self.callbacks.items()
                if hasattr(callback, "state_dict")
            },
            "random": random_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, wherever its tensors lie.

        For a training that has ended, "progress" may be all there is.

        Raises LookupError, RuntimeError, TypeError or ValueError for the state of another training.
        """
        own = self.state_dict()
        device = next(self.model.parameters()).device
        check_like(state["progress"]["kept"], own["model"], "kept")
        if "optimizer" not in state:
            self.progress.load_state_dict(state["progress"], device)
            self.model.load_state_dict(self.progress.kept)
            return
        for name in ("model", "ema", "scheduler", "scaler"):
            check_like(state[name], own[name], name)
        load_optimizer(self.optimizer, state["optimizer"])
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress.load_state_dict(state["progress"], device)
        for name, saved in state.get("callbacks", NO_CALLBACKS).items():
            self.callbacks[name].load_state_dict(saved)
        set_random_states(state["random"])


class Progress:
    """How far a training is: its finished epochs, the current one, and the best weights.

    The sums of the current epoch stay on the device until it ends.
    """

    def __init__(self, model: nn.Module, monitor: Monitor = Monitor()) -> None:  # noqa: B008
        self.monitor = monitor
        self.epochs: list[Epoch] = []  # finished
        self.losses: list[Tensor] = []  # the sum over each batch of the current epoch
        self.sums: list[Tensor] = []  # of each metric, over the current epoch
        self.first_of_equals = False  # whether the first of equal epochs is the best
        self.lr = 0.0  # of the first step of the current epoch
        self.started = 0.0  # when the current epoch began, by time.perf_counter
        self.images_per_second = 0.0  # in the training of the current epoch
        self.best: Epoch | None = None  # the epoch of the kept weights
        self.kept = snapshot(model)

    @property
    def number(self) -> int:
        """The current epoch, from 1."""
        return len(self.epochs) + 1

    @property
    def steps(self) -> tuple[int, int]:
        """Finished epochs, and finished steps of the current one."""
        return len(self.epochs), len(self.losses)

    def is_done(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or the last `patience` ones were no better than before."""
        if not self.epochs or patience is None:
            return len(self.epochs) >= epochs
        return len(self.epochs) >= min(epochs, self.find_best().number + patience)

    def find_best(self) -> Epoch:
        return self.monitor.find_best(self.epochs, self.first_of_equals)

    def begin_epoch(self, lr: float) -> None:
        self.lr, self.started = lr, time.perf_counter()

    def add_batch(self, loss: Tensor, *sums: Tensor) -> None:
        """Add a batch: the sum of its losses, and its sums for each metric."""
        self.losses.append(loss)
        self.sums = [*map(torch.add, self.sums, sums)] if self.sums else list(sums)

    def end_training(self, images: int) -> None:
        """Note the speed of the current epoch, whose validation follows."""
        self.images_per_second = images / (time.perf_counter() - self.started)

    def end_epoch(
        self,
        train: Metrics,
        val: Metrics | None,
        model: nn.Module,
        keep: str,
        added: Mapping[str, Any],
    ) -> Epoch:
        """End the current epoch. Keep the weights of `model` if they are the best so far.

        If keep is "last", keep them anyway. added: what callbacks have added to the metrics. Raises
        Diverged.
        """
        losses = {"train": train["loss"]} | ({"val": val["loss"]} if val else {})
        if not all(map(math.isfinite, losses.values())):
            values = ", ".join(f"{split} {loss}" for split, loss in losses.items())
            raise Diverged(
                f"the loss is no longer finite in epoch {self.number} "
                f"({values}) at learning rate {self.lr:g}"
            )
        seconds, speed = time.perf_counter() - self.started, self.images_per_second
        epoch = Epoch(self.number, train, val, self.lr, seconds, speed, time.time(), dict(added))
        self.epochs.append(epoch)
        self.losses, self.sums = [], []
        if keep == "last" or self.find_best() is epoch:
            self.kept = {}  # before the copy, which takes as much memory
            self.best, self.kept = epoch, snapshot(model)
        return epoch

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "losses": self.losses,
            "sums": self.sums,
            "first_of_equals": self.first_of_equals,
            "monitor": asdict(self.monitor),
            "lr": self.lr,
            "seconds": time.perf_counter() - self.started,
            "best": self.best and self.best.number,
            "kept": self.kept,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.sums = [sums.to(device) for sums in state.get("sums", [])]
        self.first_of_equals = state.get("first_of_equals", True)  # absent before 0.3
        self.lr, self.started = state["lr"], time.perf_counter() - state["seconds"]
        self.best = self.epochs[state["best"] - 1] if state["best"] else None
        self.kept = {name: tensor.to(device) for name, tensor in state["kept"].items()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state_dict, which training does not change."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer. This moves the parameters, so load them afterwards.

    Raises ValueError for a state of other names, types or shapes, which optimizers do not check: a
    fused one would write beyond the end of a tensor that is too small. A step shows what there
    should be, for those parameters that have a state: an unused or frozen one has none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number in state["state"]:  # none before the first step
        parameters[number].grad = torch.zeros_like(parameters[number])
    if state["state"]:
        optimizer.step()
        optimizer.zero_grad()
    check_like(state, optimizer.state_dict(), "optimizer")
    optimizer.load_state_dict(state)


def check_like(found: Any, expected: Any, where: str) -> None:
    """Raise ValueError at the first place where `found` and `expected` differ in more than values.

    Keys, lengths, types and the shapes of tensors must be equal; an integer may stand for a float.
    """
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or found.layout != torch.strided:
            raise ValueError(f"{where}: not a dense tensor")
        size = found.numel() * found.element_size()
        if found.shape != expected.shape or found.untyped_storage().nbytes() < size:
            raise ValueError(f"{where}: {list(found.shape)}, not {list(expected.shape)}")
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            keys = list(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{where}: {keys}, not {list(expected)}")
        for key in expected:
            check_like(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise ValueError(f"{where}: {found}, not {expected}")
        for number, pair in enumerate(zip(found, expected, strict=True)):
            check_like(*pair, f"{where}.{number}")
    elif number_or_type(found) is not number_or_type(expected):
        raise ValueError(f"{where}: {found!r}, not {expected!r}")


def number_or_type(value: object) -> type:
    return float if isinstance(value, int | float) else type(value)


def random_states() -> dict[str, Any]:
    """The states of all global random generators, as numbers and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set all global random generators to what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))

"""Where a training stands: its epochs so far, the running one, and the weights that it keeps."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnist_exp.errors import Failure


class Diverged(Failure):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Metrics:
    """What a pass over a split found, per sample."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # 0..1


@dataclass(frozen=True)
class Epoch:
    """One finished epoch. Its training metrics are of the weights as they were at each step."""

    number: int  # from 1
    train: Metrics
    val: Metrics | None  # None where there are no images to validate with
    lr: float  # of its first step
    seconds: float  # training and validation
    images_per_second: float  # in training
    ended: float  # Unix time, seconds


class Progress:
    """Where a training stands: what `training.fit` moves on, and what it goes on from.

    The results of single batches stay on the device until their epoch ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self.epochs: list[Epoch] = []  # finished
        self.losses: list[Tensor] = []  # of the running epoch: each batch's sum
        self.correct: list[Tensor] = []  # of the running epoch: each batch's count
        self.lr = 0.0  # of the running epoch's first step
        self.started = 0.0  # of the running epoch, on the clock of time.perf_counter
        self.best: Epoch | None = None  # whose weights are kept
        self.kept = snapshot(model)

    @property
    def number(self) -> int:
        """Of the running epoch, from 1."""
        return len(self.epochs) + 1

    @property
    def steps(self) -> tuple[int, int]:
        """Finished epochs, and steps of the running one."""
        return len(self.epochs), len(self.losses)

    @property
    def accuracies(self) -> list[float]:
        """On validation, of each finished epoch; none where there is no validation."""
        return [epoch.val.accuracy for epoch in self.epochs if epoch.val]

    def over(self, epochs: int, patience: int | None) -> bool:
        """Whether so many are done, or as many as patience without a better validation accuracy."""
        found = self.accuracies
        stale = len(found) - 1 - found.index(max(found)) if found else 0
        return len(self.epochs) >= epochs or (patience is not None and stale >= patience)

    def begin_epoch(self, lr: float) -> None:
        self.lr, self.started = lr, time.perf_counter()

    def note(self, loss: Tensor, correct: Tensor) -> None:
        """A batch's sum of losses and count of correct answers."""
        self.losses.append(loss)
        self.correct.append(correct)

    def end_epoch(
        self,
        train: Metrics,
        val: Metrics | None,
        images_per_second: float,
        model: nn.Module,
        keep: str,
    ) -> Epoch:
        """Close the running epoch, and keep its weights if they are to be kept."""
        losses = {"train": train.loss} | ({"val": val.loss} if val else {})
        if not all(map(math.isfinite, losses.values())):
            said = ", ".join(f"{split} {loss}" for split, loss in losses.items())
            raise Diverged(
                f"the loss is no longer finite in epoch {self.number} "
                f"({said}) at learning rate {self.lr:g}"
            )
        seconds = time.perf_counter() - self.started
        epoch = Epoch(self.number, train, val, self.lr, seconds, images_per_second, time.time())
        best = max(self.accuracies, default=-1.0)
        self.epochs.append(epoch)
        self.losses, self.correct = [], []
        if keep == "last" or val is None or val.accuracy > best:
            self.best, self.kept = epoch, snapshot(model)
        return epoch

    def state_dict(self) -> dict[str, Any]:
        """All of it, as numbers and tensors."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "losses": self.losses,
            "correct": self.correct,
            "lr": self.lr,
            "seconds": time.perf_counter() - self.started,
            "best": self.best and self.best.number,
            "kept": self.kept,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.epochs = [
            Epoch(
                **{
                    **epoch,
                    "train": Metrics(**epoch["train"]),
                    "val": epoch["val"] and Metrics(**epoch["val"]),
                }
            )
            for epoch in state["epochs"]
        ]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.correct = [correct.to(device) for correct in state["correct"]]
        self.lr, self.started = state["lr"], time.perf_counter() - state["seconds"]
        self.best = self.epochs[state["best"] - 1] if state["best"] else None
        self.kept = {name: tensor.to(device) for name, tensor in state["kept"].items()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state_dict that training does not move."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

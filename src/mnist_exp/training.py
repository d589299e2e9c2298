"""The training loop: torch only. It knows no config, no tracker and no files.

From a notebook:

    progress = Progress(model)
    hyper = dict(epochs=5, batch_size=64, seed=42)
    for epoch in fit(model, optimizer, scheduler, train, val, progress, **hyper):
        print(epoch.number, epoch.train.loss, epoch.val.accuracy)
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_exp.data.splits import Split
from mnist_exp.errors import Failure
from mnist_exp.precision import FLOAT32, Precision
from mnist_exp.ranks import ALONE, Ranks

EVALUATION_BATCH = 4096  # images; changes the speed of an evaluation, not its meaning


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train: Split,
    val: Split,
    progress: Progress,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    keep: str = "best",
    precision: Precision = FLOAT32,
    ranks: Ranks = ALONE,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Epoch]:
    """Train from where `progress` stands to the end of `epochs`, yielding each epoch as it ends.

    train, val: images [n, channels, height, width] and int64 labels [n], on the model's device;
    model and images are of precision.dtype. `progress.kept` becomes the weights of the best
    validation accuracy (the earliest of equals), or with keep="last" the last ones. `on_step` may
    raise to stop; nothing is lost then.

    Raises Diverged when the loss is no longer finite; the kept weights are finite.
    """
    loss_function, scaler = nn.CrossEntropyLoss(reduction=ranks.reduction), precision.scaler
    joined = ranks.joined(model)
    while len(progress.epochs) < epochs:
        if not progress.losses:
            progress.begin_epoch(lr=optimizer.param_groups[0]["lr"])
        batches = shuffled(len(train), seed, progress.number).to(train.labels.device)
        batches = batches.split(batch_size)
        model.train()
        for index in batches[len(progress.losses) :]:
            share = ranks.share(index)
            labels = train.labels[share]
            with precision.autocast:
                logits = joined(train.images[share])
                loss = ranks.mean(loss_function(logits, labels), len(index))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            right = (logits.argmax(1) == labels).sum()
            progress.note(*ranks.sum(loss.detach(), right))
            on_step(progress)
        sizes = [len(index) for index in batches]
        trained = mean_per_sample(progress.losses, progress.correct, sizes)
        train_seconds = time.perf_counter() - progress.started
        validated = evaluate(model, val, precision, ranks)
        yield progress.end_epoch(trained, validated, sum(sizes) / train_seconds, model, keep)


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: Split, precision: Precision = FLOAT32, ranks: Ranks = ALONE
) -> Figures:
    """Loss and accuracy of the model as it is, on a split that lies on its device."""
    model.eval()
    ranks.equal_buffers(model)
    loss_function = nn.CrossEntropyLoss(reduction=ranks.reduction)
    losses, correct, sizes = [], [], []
    for start in range(0, len(split), EVALUATION_BATCH):
        batch = split[start : start + EVALUATION_BATCH]
        labels = ranks.share(batch.labels)
        with precision.autocast:
            logits = model(ranks.share(batch.images))
            loss = ranks.mean(loss_function(logits, labels), len(batch))
        loss, right = ranks.sum(loss, (logits.argmax(1) == labels).sum())
        losses.append(loss)
        correct.append(right)
        sizes.append(len(batch))
    return mean_per_sample(losses, correct, sizes)


@torch.inference_mode()
def predict(model: nn.Module, split: Split, precision: Precision = FLOAT32) -> Tensor:
    """The class that the model finds in each image, int64 [n], as `evaluate` counts it."""
    model.eval()
    with precision.autocast:
        found = [model(images).argmax(1) for images in split.images.split(EVALUATION_BATCH)]
    return torch.cat(found)


def mean_per_sample(losses: list[Tensor], correct: list[Tensor], sizes: list[int]) -> Figures:
    """Means over samples, from each batch's mean loss, count of correct answers, and size.

    The one place that reads the device, so that nothing waits for it inside an epoch.
    """
    weights = torch.tensor(sizes, dtype=torch.float64)
    loss = torch.stack(losses).cpu().double() @ weights / weights.sum()
    accuracy = torch.stack(correct).sum().cpu() / weights.sum()
    return Figures(loss.item(), accuracy.item())


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation, int64 [count]: a pure function of (seed, epoch), whatever was drawn before."""
    mixed = random.Random(f"{seed}/{epoch}").getrandbits(32)
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state_dict that training does not move."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Diverged(Failure):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Figures:
    """What a pass over a split found, per sample."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # 0..1


@dataclass(frozen=True)
class Epoch:
    """One finished epoch. Its training figures are of the weights as they were at each step."""

    number: int  # from 1
    train: Figures
    val: Figures
    lr: float  # of its first step
    seconds: float  # training and validation
    images_per_second: float  # in training
    ended: float  # Unix time, seconds


class Progress:
    """Where a training stands: what `fit` moves on, and what it goes on from.

    The results of single batches stay on the device until their epoch ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self.epochs: list[Epoch] = []  # finished
        self.losses: list[Tensor] = []  # of the running epoch: each batch's mean
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

    def begin_epoch(self, lr: float) -> None:
        self.lr, self.started = lr, time.perf_counter()

    def note(self, loss: Tensor, correct: Tensor) -> None:
        """A batch's mean loss and count of correct answers."""
        self.losses.append(loss)
        self.correct.append(correct)

    def end_epoch(
        self, train: Figures, val: Figures, images_per_second: float, model: nn.Module, keep: str
    ) -> Epoch:
        """Close the running epoch, and keep its weights if they are to be kept."""
        if not (math.isfinite(train.loss) and math.isfinite(val.loss)):
            raise Diverged(
                f"the loss is no longer finite in epoch {self.number} "
                f"(train {train.loss}, val {val.loss}) at learning rate {self.lr:g}"
            )
        seconds = time.perf_counter() - self.started
        epoch = Epoch(self.number, train, val, self.lr, seconds, images_per_second, time.time())
        self.epochs.append(epoch)
        self.losses, self.correct = [], []
        if keep == "last" or self.best is None or val.accuracy > self.best.val.accuracy:
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
            Epoch(**{**epoch, "train": Figures(**epoch["train"]), "val": Figures(**epoch["val"])})
            for epoch in state["epochs"]
        ]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.correct = [correct.to(device) for correct in state["correct"]]
        self.lr, self.started = state["lr"], time.perf_counter() - state["seconds"]
        self.best = self.epochs[state["best"] - 1] if state["best"] else None
        self.kept = {name: tensor.to(device) for name, tensor in state["kept"].items()}

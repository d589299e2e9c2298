"""The training loop: torch only. It knows no config, no tracker and no files.

From a notebook:

    progress, options = Progress(model), Options(epochs=5, batch_size=64, seed=42)
    for epoch in fit(model, optimizer, scheduler, train, val, progress, options):
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
from torch.optim.swa_utils import AveragedModel

from mnist_exp.augmentation import DRAWS, Augmentation, unchanged
from mnist_exp.data.splits import Split
from mnist_exp.errors import Failure
from mnist_exp.precision import FLOAT32, Precision
from mnist_exp.ranks import ALONE, Ranks

# Change the speed and the memory of an evaluation, not its meaning.
EVALUATION_BATCH = 4096  # images
EVALUATION_VALUES = 2**22  # of images, 16 MB as float32: fewer images where they are large


@dataclass(frozen=True)
class Options:
    """How `fit` trains."""

    epochs: int
    batch_size: int  # images per optimizer step
    seed: int  # of the images' order and augmentation
    keep: str = "best"  # the weights of the best validation accuracy, or the "last"
    label_smoothing: float = 0.0  # 0..1, in the training loss (Szegedy et al., 2016)
    clip_norm: float | None = None  # of all gradients together (Pascanu et al., 2013)
    accumulate: int = 1  # parts that a batch is computed in: less memory, the same step
    patience: int | None = None  # epochs without a better validation accuracy before the end


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train: Split,
    val: Split,
    progress: Progress,
    options: Options,
    *,
    average: AveragedModel | None = None,
    augment: Augmentation = unchanged,
    precision: Precision = FLOAT32,
    ranks: Ranks = ALONE,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Epoch]:
    """Train from where `progress` stands to the end, yielding each epoch as it ends.

    train, val: images [n, channels, height, width] and int64 labels [n], on the model's device;
    model and images are of precision.dtype. `progress.kept` becomes the weights of the best
    validation accuracy (the earliest of equals), or the last ones where that is asked for or val is
    empty. Where there is an `average` of the model, it is what is evaluated and kept. `on_step` may
    raise to stop; nothing is lost then.

    Raises Diverged when the loss is no longer finite; the kept weights are finite.
    """
    loss_function = nn.CrossEntropyLoss(reduction="sum", label_smoothing=options.label_smoothing)
    joined, scaler = ranks.joined(model), precision.scaler
    evaluated = model if average is None else average.module
    while not progress.over(options):
        if not progress.losses:
            progress.begin_epoch(lr=optimizer.param_groups[0]["lr"])
        model.train()
        for share, size in batches(train, progress, options, augment, ranks):
            optimizer.zero_grad()
            losses, right = [], []
            parts = share.chunk(options.accumulate)
            for part in parts:
                with ranks.quiet(joined, until=part is parts[-1]):
                    with precision.autocast:
                        logits = joined(part.images)
                        loss = loss_function(logits, part.labels)
                    scaler.scale(loss / size).backward()
                losses.append(loss.detach())
                right.append((logits.argmax(1) == part.labels).sum())
            if options.clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            if average is not None:
                average.update_parameters(model)
            progress.note(*ranks.sum(sum(losses), sum(right)))
            on_step(progress)
        trained = mean_per_sample(progress.losses, progress.correct, len(train))
        speed = len(train) / (time.perf_counter() - progress.started)
        validated = evaluate(evaluated, val, precision, ranks) if len(val) else None
        yield progress.end_epoch(trained, validated, speed, evaluated, options.keep)


def batches(
    train: Split, progress: Progress, options: Options, augment: Augmentation, ranks: Ranks
) -> Iterator[tuple[Split, int]]:
    """Of each batch that the running epoch has left: this rank's share, augmented, and its size.

    Order and augmentation are functions of the seed and the epoch alone.
    """
    done, of_epoch = len(progress.losses), (len(train), options.seed, progress.number)
    order = shuffled(*of_epoch).to(train.labels.device).split(options.batch_size)[done:]
    draws = drawn(*of_epoch).to(train.images.device).split(options.batch_size)[done:]
    shares = train.batches([ranks.share(index) for index in order])
    for index, uniform, share in zip(order, draws, shares, strict=True):
        yield Split(augment(share.images, ranks.share(uniform)), share.labels), len(index)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    precision: Precision = FLOAT32,
    ranks: Ranks = ALONE,
    on_logits: Callable[[Tensor], None] = lambda logits: None,
) -> Figures:
    """Loss and accuracy of the model as it is, on a split that lies on its device.

    on_logits: is told those of each batch, in the images' order where there is one rank.
    """
    model.eval()
    ranks.equal_buffers(model)
    loss_function = nn.CrossEntropyLoss(reduction="sum")
    losses, correct = [], []
    for share in in_order(split, ranks):
        with precision.autocast:
            logits = model(share.images)
            loss = loss_function(logits, share.labels)
        on_logits(logits)
        loss, right = ranks.sum(loss, (logits.argmax(1) == share.labels).sum())
        losses.append(loss)
        correct.append(right)
    return mean_per_sample(losses, correct, len(split))


@torch.inference_mode()
def predict(model: nn.Module, split: Split, precision: Precision = FLOAT32) -> Tensor:
    """The class that the model finds in each image, int64 [n], as `evaluate` counts it."""
    model.eval()
    with precision.autocast:
        return torch.cat([model(share.images).argmax(1) for share in in_order(split)])


def in_order(split: Split, ranks: Ranks = ALONE) -> Iterator[Split]:
    """This rank's share of each batch of an evaluation."""
    fitting = max(1, EVALUATION_VALUES // math.prod(split.images.shape[1:]))
    size = min(EVALUATION_BATCH, fitting)
    starts = range(0, len(split), size)
    return split.batches(slice(n + ranks.rank, n + size, ranks.count) for n in starts)


def mean_per_sample(losses: list[Tensor], correct: list[Tensor], count: int) -> Figures:
    """Means over so many samples, from each batch's sum of losses and count of correct answers.

    The one place that reads the device, so that nothing waits for it inside an epoch.
    """
    loss = torch.stack(losses).cpu().double().sum() / count
    accuracy = torch.stack(correct).sum().cpu().double() / count
    return Figures(loss.item(), accuracy.item())


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation, int64 [count]: a pure function of (seed, epoch), whatever was drawn before."""
    return torch.randperm(count, generator=generator(f"{seed}/{epoch}"))


def drawn(count: int, seed: int, epoch: int) -> Tensor:
    """Uniform numbers for the augmentation of an epoch, float32 [count, DRAWS], as pure."""
    return torch.rand(count, DRAWS, generator=generator(f"{seed}/{epoch}/augmentation"))


def generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(32))


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
    val: Figures | None  # None where there are no images to validate with
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

    def over(self, options: Options) -> bool:
        """Whether all epochs are done, or too many without a better validation accuracy."""
        found = self.accuracies
        stale = len(found) - 1 - found.index(max(found)) if found else 0
        lost_patience = options.patience is not None and stale >= options.patience
        return lost_patience or len(self.epochs) >= options.epochs

    def begin_epoch(self, lr: float) -> None:
        self.lr, self.started = lr, time.perf_counter()

    def note(self, loss: Tensor, correct: Tensor) -> None:
        """A batch's sum of losses and count of correct answers."""
        self.losses.append(loss)
        self.correct.append(correct)

    def end_epoch(
        self,
        train: Figures,
        val: Figures | None,
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
                    "train": Figures(**epoch["train"]),
                    "val": epoch["val"] and Figures(**epoch["val"]),
                }
            )
            for epoch in state["epochs"]
        ]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.correct = [correct.to(device) for correct in state["correct"]]
        self.lr, self.started = state["lr"], time.perf_counter() - state["seconds"]
        self.best = self.epochs[state["best"] - 1] if state["best"] else None
        self.kept = {name: tensor.to(device) for name, tensor in state["kept"].items()}

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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mnist_exp.data.splits import Split
from mnist_exp.training.augmentation import DRAWS, Augmentation, unchanged
from mnist_exp.training.distributed import SINGLE, ProcessGroup
from mnist_exp.training.precision import FLOAT32, Precision
from mnist_exp.training.state import Epoch, Metrics, Progress

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
    group: ProcessGroup = SINGLE,
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
    ddp_model, scaler = group.wrap(model), precision.scaler
    evaluated = model if average is None else average.module
    while not progress.over(options.epochs, options.patience):
        if not progress.losses:
            progress.begin_epoch(lr=optimizer.param_groups[0]["lr"])
        model.train()
        for share, size in batches(train, progress, options, augment, group):
            optimizer.zero_grad()
            losses, right = [], []
            parts = share.chunk(options.accumulate)
            for part in parts:
                with group.no_sync(ddp_model, unless=part is parts[-1]):
                    with precision.autocast:
                        logits = ddp_model(part.images)
                        loss = loss_function(logits, part.labels)
                    # By the mean size of a shard, because DDP averages over the ranks.
                    scaler.scale(loss / (size / group.world_size)).backward()
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
            progress.note(*group.sum(sum(losses), sum(right)))
            on_step(progress)
        trained = mean_per_sample(progress.losses, progress.correct, len(train))
        speed = len(train) / (time.perf_counter() - progress.started)
        validated = evaluate(evaluated, val, precision, group) if len(val) else None
        yield progress.end_epoch(trained, validated, speed, evaluated, options.keep)


def batches(
    train: Split, progress: Progress, options: Options, augment: Augmentation, group: ProcessGroup
) -> Iterator[tuple[Split, int]]:
    """Of each batch that the running epoch has left: this rank's share, augmented, and its size.

    Order and augmentation are functions of the seed and the epoch alone.
    """
    done, of_epoch = len(progress.losses), (len(train), options.seed, progress.number)
    order = shuffled(*of_epoch).to(train.labels.device).split(options.batch_size)[done:]
    draws = drawn(*of_epoch).to(train.images.device).split(options.batch_size)[done:]
    shares = train.batches([group.shard(index) for index in order])
    for index, uniform, share in zip(order, draws, shares, strict=True):
        yield Split(augment(share.images, group.shard(uniform)), share.labels), len(index)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    precision: Precision = FLOAT32,
    group: ProcessGroup = SINGLE,
    on_logits: Callable[[Tensor], None] = lambda logits: None,
) -> Metrics:
    """Loss and accuracy of the model as it is, on a split that lies on its device.

    on_logits: is told those of each batch, in the images' order where there is one rank.
    """
    model.eval()
    group.broadcast_buffers(model)
    loss_function = nn.CrossEntropyLoss(reduction="sum")
    losses, correct = [], []
    for share in in_order(split, group):
        with precision.autocast:
            logits = model(share.images)
            loss = loss_function(logits, share.labels)
        on_logits(logits)
        loss, right = group.sum(loss, (logits.argmax(1) == share.labels).sum())
        losses.append(loss)
        correct.append(right)
    return mean_per_sample(losses, correct, len(split))


@torch.inference_mode()
def predict(model: nn.Module, split: Split, precision: Precision = FLOAT32) -> Tensor:
    """The class that the model finds in each image, int64 [n], as `evaluate` counts it."""
    model.eval()
    with precision.autocast:
        return torch.cat([model(share.images).argmax(1) for share in in_order(split)])


def in_order(split: Split, group: ProcessGroup = SINGLE) -> Iterator[Split]:
    """This rank's share of each batch of an evaluation."""
    fitting = max(1, EVALUATION_VALUES // math.prod(split.images.shape[1:]))
    size = min(EVALUATION_BATCH, fitting)
    starts = range(0, len(split), size)
    return split.batches(slice(n + group.rank, n + size, group.world_size) for n in starts)


def mean_per_sample(losses: list[Tensor], correct: list[Tensor], count: int) -> Metrics:
    """Means over so many samples, from each batch's sum of losses and count of correct answers.

    The one place that reads the device, so that nothing waits for it inside an epoch.
    """
    loss = torch.stack(losses).cpu().double().sum() / count
    accuracy = torch.stack(correct).sum().cpu().double() / count
    return Metrics(loss.item(), accuracy.item())


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation, int64 [count]: a pure function of (seed, epoch), whatever was drawn before."""
    return torch.randperm(count, generator=generator(f"{seed}/{epoch}"))


def drawn(count: int, seed: int, epoch: int) -> Tensor:
    """Uniform numbers for the augmentation of an epoch, float32 [count, DRAWS], as pure."""
    return torch.rand(count, DRAWS, generator=generator(f"{seed}/{epoch}/augmentation"))


def generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(32))

"""The training loop: plain PyTorch that reads no config, no files and no tracker.

From a notebook:

    state = TrainState(model, optimizer, scheduler)
    for epoch in fit(state, train, val, TrainerOptions(epochs=5), batch_size=64, seed=42):
        print(epoch.number, epoch.train["loss"], epoch.val["accuracy"])
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_exp.data.splits import Split
from mnist_exp.training.augmentation import Augmentation, identity
from mnist_exp.training.callbacks import read_added, run_callbacks
from mnist_exp.training.distributed import SINGLE, ProcessGroup
from mnist_exp.training.losses import CrossEntropy
from mnist_exp.training.metrics import DEFAULT_METRICS, Epoch, Metric, Metrics
from mnist_exp.training.options import TrainerOptions
from mnist_exp.training.parameters import set_train_mode
from mnist_exp.training.precision import FLOAT32, Precision
from mnist_exp.training.sampling import draw_order, draw_uniform
from mnist_exp.training.state import Progress, TrainState

# These affect the speed and memory use of an evaluation, but no metric.
EVALUATION_BATCH = 4096  # images
EVALUATION_VALUES = 2**22  # per batch, 16 MB as float32: fewer images if they are large


def fit(
    state: TrainState,
    train: Split,
    val: Split,
    options: TrainerOptions,
    *,
    batch_size: int,
    seed: int,
    sampling: str = "shuffled",
    augment: Augmentation = identity,
    group: ProcessGroup = SINGLE,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Epoch]:
    """Train from where `state` is to the end; yield each epoch as it ends.

    train, val: images [n, channels, height, width] and int64 labels [n], on the model's device and
    in its dtype. batch_size: images per optimizer step. seed: determines the order and the
    augmentation of the images. sampling: see `draw_order`. on_step may raise to stop; the training
    can resume from `state`.

    Raises Diverged when the loss is no longer finite; the kept weights are finite.
    """
    model, progress = group.wrap(state.model), state.progress
    run_callbacks(state.callbacks, "on_start", state)
    while not progress.is_done(options.epochs, options.patience):
        if not progress.losses:  # else the epoch is resumed
            progress.begin_epoch(lr=state.optimizer.param_groups[0]["lr"])
        set_train_mode(state.model)
        state.loss.train()
        for shard, size in batches(train, progress, batch_size, seed, sampling, augment, group):
            loss, *sums = group.sum(*train_step(model, state, shard, size, options, group))
            progress.add_batch(loss, *sums)
            if state.callbacks:
                run_callbacks(state.callbacks, "on_step", state, loss / size)
            on_step(progress)
        progress.end_training(images=len(train))
        yield end_epoch(state, len(train), val, options, group)
    run_callbacks(state.callbacks, "on_end", state)


def train_step(
    model: nn.Module,
    state: TrainState,
    batch: Split,
    batch_size: int,
    options: TrainerOptions,
    group: ProcessGroup = SINGLE,
) -> list[Tensor]:
    """Take one optimizer step; return the sum of the losses, a scalar, and the sums of each metric.

    They are on the device, without gradients. model: `state.model`, wrapped in DDP if there are
    several processes. batch: this process's shard of a batch of batch_size images.
    """
    state.optimizer.zero_grad()
    sums = []
    micro_batches = batch.chunk(options.accumulate)
    for micro_batch in micro_batches:
        with group.sync_gradients(model, micro_batch is micro_batches[-1]):
            with state.precision.autocast:
                logits = model(micro_batch.images)
                loss = state.loss(logits, micro_batch.labels)
            # Divide by the mean shard size: DDP averages the gradients over the processes.
            state.scaler.scale(loss / (batch_size / group.world_size)).backward()
        sums.append(sum_batch(loss.detach(), logits.detach(), micro_batch.labels, state.metrics))
    state.scaler.unscale_(state.optimizer)  # does nothing except for float16
    if options.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if not isinstance(state.scheduler, ReduceLROnPlateau):  # that one follows the monitor
        state.scheduler.step()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    return [functools.reduce(torch.add, values) for values in zip(*sums, strict=True)]


def end_epoch(
    state: TrainState, images: int, val: Split, options: TrainerOptions, group: ProcessGroup
) -> Epoch:
    """Validate, and end the current epoch, in which the model was trained on `images` images."""
    progress, model = state.progress, state.averaged_model
    state.optimizer.zero_grad()  # the next step would; until then they take up memory
    train_metrics = compute_metrics(progress.losses, progress.sums, images, state.metrics)
    val_metrics = None
    if len(val):
        val_metrics = evaluate(model, val, state.precision, state.loss, state.metrics, group)
    computed = name_metrics("train", train_metrics) | name_metrics("val", val_metrics)
    metrics: dict[str, Any] = dict(computed)
    run_callbacks(state.callbacks, "on_epoch", state, metrics)
    added = read_added({name: metrics[name] for name in metrics if name not in computed})
    epoch = progress.end_epoch(train_metrics, val_metrics, model, options.keep, added)
    if isinstance(state.scheduler, ReduceLROnPlateau):
        state.scheduler.step(progress.monitor.score(progress.monitor.value(epoch)))
    return epoch


def batches(
    train: Split,
    progress: Progress,
    batch_size: int,
    seed: int,
    sampling: str,
    augment: Augmentation,
    group: ProcessGroup,
) -> Iterator[tuple[Split, int]]:
    """Yield this process's shard of each remaining batch of the epoch, and the batch's size.

    Order and augmentation are functions of the seed and the epoch alone.
    """
    done, epoch = len(progress.losses), progress.number
    order = draw_order(train.labels, sampling, seed, epoch)
    uniform = draw_uniform(order, len(train), seed, epoch).to(train.labels.device)
    indices = order.to(train.labels.device).split(batch_size)[done:]
    uniforms = uniform.split(batch_size)[done:]
    shards = train.batches([group.shard(index) for index in indices])
    for index, uniform, shard in zip(indices, uniforms, shards, strict=True):
        yield Split(augment(shard.images, group.shard(uniform)), shard.labels), len(index)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    precision: Precision = FLOAT32,
    loss: nn.Module | None = None,
    metrics: Mapping[str, Metric] = DEFAULT_METRICS,
    group: ProcessGroup = SINGLE,
    on_logits: Callable[[Tensor], None] = lambda logits: None,
) -> Metrics:
    """The mean loss and the metrics of the model on a split that is on its device.

    loss: cross-entropy if None. on_logits: called with the logits of each batch, in the order of
    the images if there is only one process.
    """
    loss = CrossEntropy() if loss is None else loss
    model.eval()
    loss.eval()
    group.broadcast_buffers(model)
    losses: list[Tensor] = []
    totals: list[Tensor] = []
    for batch in evaluation_batches(split, group):
        with precision.autocast:
            logits = model(batch.images)
            batch_loss = loss(logits, batch.labels)
        on_logits(logits)
        value, *sums = group.sum(*sum_batch(batch_loss, logits, batch.labels, metrics))
        losses.append(value)
        totals = [*map(torch.add, totals, sums)] if totals else sums
    return compute_metrics(losses, totals, len(split), metrics)


@torch.inference_mode()
def predict(model: nn.Module, split: Split, precision: Precision = FLOAT32) -> Tensor:
    """The class that the model predicts for each image, int64 [n]."""
    model.eval()
    with precision.autocast:
        return torch.cat([model(batch.images).argmax(1) for batch in evaluation_batches(split)])


def evaluation_batches(split: Split, group: ProcessGroup = SINGLE) -> Iterator[Split]:
    """Yield this process's shard of each batch of an evaluation, in order."""
    values_per_image = math.prod(split.images.shape[1:])
    size = min(EVALUATION_BATCH, max(1, EVALUATION_VALUES // values_per_image))
    starts = range(0, len(split), size)
    return split.batches(slice(n + group.rank, n + size, group.world_size) for n in starts)


def sum_batch(
    loss: Tensor, logits: Tensor, labels: Tensor, metrics: Mapping[str, Metric]
) -> list[Tensor]:
    """The sum of the losses, and the sums of each metric."""
    return [loss, *(metric.update(logits, labels) for metric in metrics.values())]


def compute_metrics(
    losses: list[Tensor], sums: list[Tensor], count: int, metrics: Mapping[str, Metric]
) -> Metrics:
    """The mean loss over `count` images, from the sum of each batch, and the metrics.

    This is the only place that reads from the device, so nothing within an epoch waits for it.
    """
    loss = torch.stack(losses).cpu().double().sum() / count
    pairs = zip(metrics.items(), sums, strict=True)
    return {"loss": loss.item(), **{name: m.compute(total.cpu()) for (name, m), total in pairs}}


def name_metrics(split: str, metrics: Metrics | None) -> Metrics:
    """The metrics by the names that they have in logs; empty for a split without images."""
    return {f"{split}/{name}": value for name, value in (metrics or {}).items()}

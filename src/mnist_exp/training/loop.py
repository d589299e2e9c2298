"""The training loop: plain PyTorch that reads no config, no files and no tracker.

From a notebook:

    state = TrainState(model, optimizer, scheduler)
    for epoch in fit(state, train, val, TrainerOptions(epochs=5), batch_size=64, seed=42):
        print(epoch.number, epoch.train.loss, epoch.val.accuracy)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_exp.data.splits import Split
from mnist_exp.training.augmentation import Augmentation, identity
from mnist_exp.training.distributed import SINGLE, ProcessGroup
from mnist_exp.training.options import TrainerOptions
from mnist_exp.training.parameters import set_train_mode
from mnist_exp.training.precision import FLOAT32, Precision
from mnist_exp.training.sampling import draw_order, draw_uniform
from mnist_exp.training.state import Epoch, Metrics, Progress, TrainState

# These change the speed and the memory of an evaluation, but no metric.
EVALUATION_BATCH = 4096  # images
EVALUATION_VALUES = 2**22  # of images, 16 MB as float32: fewer images where they are large


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
    """Train from where `state` stands to the end; yield each epoch when it ends.

    train, val: images [n, channels, height, width] and int64 labels [n], on the model's device and
    in its dtype. batch_size: images per optimizer step. seed: determines the order and the
    augmentation of the images. sampling: see `draw_order`. on_step may raise to stop; the training
    can resume from `state`.

    Raises Diverged when the loss is no longer finite; the kept weights are finite.
    """
    model, progress = group.wrap(state.model), state.progress
    while not progress.is_done(options.epochs, options.patience):
        if not progress.losses:  # else the epoch is resumed
            progress.begin_epoch(lr=state.optimizer.param_groups[0]["lr"])
        set_train_mode(state.model)
        for shard, size in batches(train, progress, batch_size, seed, sampling, augment, group):
            loss, correct = train_step(model, state, shard, size, options, group)
            progress.add_batch(*group.sum(loss, correct))
            on_step(progress)
        progress.end_training(images=len(train))
        train_metrics = mean_per_sample(progress.losses, progress.correct, len(train))
        val_metrics = None
        if len(val):
            val_metrics = evaluate(state.averaged_model, val, state.precision, group)
        yield progress.end_epoch(train_metrics, val_metrics, state.averaged_model, options.keep)


def train_step(
    model: nn.Module,
    state: TrainState,
    batch: Split,
    batch_size: int,
    options: TrainerOptions,
    group: ProcessGroup = SINGLE,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step; return the sum of the losses and the number of correct predictions.

    Both are scalars on the device, without gradients. model: `state.model`, wrapped in DDP if there
    are several processes. batch: this process's shard of a batch of batch_size images.
    """
    state.optimizer.zero_grad()
    losses, correct = [], []
    micro_batches = batch.chunk(options.accumulate)
    for micro_batch in micro_batches:
        with group.sync_gradients(model, micro_batch is micro_batches[-1]):
            with state.precision.autocast:
                logits = model(micro_batch.images)
                loss = F.cross_entropy(
                    logits,
                    micro_batch.labels,
                    reduction="sum",
                    label_smoothing=options.label_smoothing,
                )
            # Divide by the mean shard size: DDP averages the gradients over the processes.
            state.scaler.scale(loss / (batch_size / group.world_size)).backward()
        losses.append(loss.detach())
        correct.append((logits.argmax(1) == micro_batch.labels).sum())
    state.scaler.unscale_(state.optimizer)  # does nothing but for float16
    if options.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    # Added one by one: torch's own sum may round in another order.
    return sum(losses[1:], losses[0]), sum(correct[1:], correct[0])


def batches(
    train: Split,
    progress: Progress,
    batch_size: int,
    seed: int,
    sampling: str,
    augment: Augmentation,
    group: ProcessGroup,
) -> Iterator[tuple[Split, int]]:
    """Yield this process's shard of each batch that is left of the epoch, and the batch's size.

    Order and augmentation are functions of the seed and the epoch alone.
    """
    done, epoch = len(progress.losses), progress.number
    order = draw_order(train.labels, sampling, seed, epoch).to(train.labels.device)
    uniform = draw_uniform(len(train), seed, epoch).to(train.images.device)
    indices = order.split(batch_size)[done:]
    uniforms = uniform.split(batch_size)[done:]
    shards = train.batches([group.shard(index) for index in indices])
    for index, uniform, shard in zip(indices, uniforms, shards, strict=True):
        yield Split(augment(shard.images, group.shard(uniform)), shard.labels), len(index)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    precision: Precision = FLOAT32,
    group: ProcessGroup = SINGLE,
    on_logits: Callable[[Tensor], None] = lambda logits: None,
) -> Metrics:
    """Loss and accuracy of the model on a split that lies on its device.

    on_logits: called with the logits of each batch, in the order of the images if there is only
    one process.
    """
    model.eval()
    group.broadcast_buffers(model)
    losses, correct = [], []
    for batch in evaluation_batches(split, group):
        with precision.autocast:
            logits = model(batch.images)
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        on_logits(logits)
        sums = group.sum(loss, (logits.argmax(1) == batch.labels).sum())
        losses.append(sums[0])
        correct.append(sums[1])
    return mean_per_sample(losses, correct, len(split))


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


def mean_per_sample(losses: list[Tensor], correct: list[Tensor], count: int) -> Metrics:
    """Means over `count` samples, from the sum of losses and the correct predictions of each batch.

    The only place that reads from the device, so that nothing waits for it within an epoch.
    """
    loss = torch.stack(losses).cpu().double().sum() / count
    accuracy = torch.stack(correct).sum().cpu().double() / count
    return Metrics(loss.item(), accuracy.item())

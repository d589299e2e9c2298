"""Build the objects that a config names."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.data.dataset import take_fold
from mnist_exp.errors import BadInput, first_line
from mnist_exp.experiment import environment
from mnist_exp.experiment.bugs import find_place, is_deliberate
from mnist_exp.experiment.targets import TARGET, find_target, read_options
from mnist_exp.models.summary import Summary, memory_format, summarize
from mnist_exp.training.callbacks import HOOKS
from mnist_exp.training.losses import scale_weights
from mnist_exp.training.metrics import Metric, Monitor, find_monitor
from mnist_exp.training.options import DataOptions, TrainerOptions
from mnist_exp.training.parameters import freeze, set_groups, set_train_mode
from mnist_exp.training.precision import Precision
from mnist_exp.training.sampling import shuffle
from mnist_exp.training.state import TrainState, random_states, set_random_states

# What a model that does not fit its images can raise.
MODEL_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)
MOST_IMAGES = 5_000  # from which a model computes its first weights
TensorOptions = tuple[torch.device, torch.dtype, torch.memory_format]  # of weights and images


class Parts(NamedTuple):
    """A model, how it computes, and on what."""

    kind: Kind
    precision: Precision
    model: nn.Module
    tensor_options: TensorOptions


def load_checked_dataset(config: DictConfig, device: torch.device) -> Dataset:
    """The data set, after a check that it and the device allow the rest of the config.

    Raises BadInput if they do not, and what `build` does.
    """
    for key in ("trainer.precision", "trainer.compile", "batch_size"):
        value = OmegaConf.select(config, key)
        if lack := environment.check_support(key, value, device):
            raise BadInput(f"{key}={value}: {lack}")
    dataset = load_dataset(OmegaConf.to_yaml(config.data, resolve=True))
    monitor, patience = config.trainer.monitor, config.trainer.patience
    followers = {
        f"trainer.patience={patience}": patience is not None,
        describe(config, "scheduler"): str(config.scheduler[TARGET]).endswith(".plateau"),
        f"trainer.monitor={monitor}": monitor != TrainerOptions.monitor,
    }
    if not len(dataset.val) and monitor.startswith("val/"):
        for follower in (text for text, follows in followers.items() if follows):
            raise BadInput(f"{follower}: there is no validation; data.val_fraction=0 leaves none")
    return dataset


def build_model(
    config: DictConfig, kind: Kind, device: torch.device, pretrained: bool = False
) -> Parts:
    """A model for images of this kind, with initial weights.

    pretrained: whether `model.pretrained` counts; not where weights of a checkpoint follow, so that
    nothing looks for others. Raises what `build` does.
    """
    precision = Precision(config.trainer.precision, device)
    torch.manual_seed(config.seed)
    shape, classes = kind.image_shape, kind.classes
    skip = () if pretrained else ("pretrained",)
    model: nn.Module = build(config, "model", skip=skip, input_shape=shape, classes=classes)
    layout = memory_format(config.trainer.channels_last, model)
    model.to(device, precision.dtype).to(memory_format=layout)
    with raise_bad_input(f"trainer.freeze={config.trainer.freeze}"):
        freeze(model, config.trainer.freeze)
    return Parts(kind, precision, model, (device, precision.dtype, layout))


def initialize_from_images(parts: Parts, dataset: Dataset) -> None:
    """Show training images to a model that computes some of its weights from them.

    Such a model has a method `initialize_from`, which takes normalized images.
    """
    initialize_from = getattr(parts.model, "initialize_from", None)
    if initialize_from is not None:
        chosen = shuffle(len(dataset.train), 0, 0)[:MOST_IMAGES].sort().values
        some = dataset.prepare(dataset.train[chosen], parts.tensor_options[0])
        (batch,) = some.batches([slice(None)])
        initialize_from(batch.images)


def build_ema(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the model (Polyak and Juditsky, 1992), or None.

    Each step moves it by 1 - decay of the way, with the running statistics of batch norms.
    """
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def trainer_options(config: DictConfig) -> TrainerOptions:
    """The group `trainer`. Raises BadInput for an option without a field in TrainerOptions."""
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    if unknown := options.keys() - {field.name for field in fields(TrainerOptions)}:
        raise BadInput(f"trainer.{min(unknown)}: no such field of TrainerOptions")
    return TrainerOptions(**options)


def build_loss(config: DictConfig, parts: Parts, labels: Tensor | None = None) -> nn.Module:
    """The loss, with class weights for these training labels; None: for an evaluation, without.

    Raises what `build` does, and BadInput for another number of weights than classes.
    """
    (device, dtype, _), classes = parts.tensor_options, parts.kind.classes
    weights = config.loss.get("class_weights")
    scaled: dict[str, Any] = {}
    if weights is not None and labels is not None:
        with raise_bad_input(f"loss.class_weights={weights}"):
            scaled["class_weights"] = scale_weights(weights, labels.bincount(minlength=classes))
    loss = build(config, "loss", skip=("class_weights",), **scaled)
    if not isinstance(loss, nn.Module):
        raise BadInput(f"{describe(config, 'loss')}: not a torch.nn.Module")
    return loss.to(device, dtype)


def build_metrics(config: DictConfig) -> tuple[dict[str, Metric], Monitor]:
    """The metrics by name, and the one to monitor. Raises what `build` does."""
    metrics = {name: build(config, f"metrics.{name}") for name in config.metrics}
    name = config.trainer.monitor
    try:
        return metrics, find_monitor(name, metrics)
    except KeyError:
        known = ", ".join(["loss", *metrics])
        raise BadInput(f"trainer.monitor={name}: not computed; there are {known}") from None
    except AttributeError as error:
        raise BadInput(f"trainer.monitor={name}: the metric has no higher_is_better") from error


def build_state(config: DictConfig, parts: Parts, loss: nn.Module, epoch_steps: int) -> TrainState:
    """All that trains a model. Raises what `build` does."""
    optimizer = build(config, "optimizer", parts.model.parameters(), skip=("groups",))
    options: Any = OmegaConf.to_container(config.optimizer)
    with raise_bad_input("optimizer.groups"):
        set_groups(optimizer, parts.model, options.get("groups") or [])
    length = {"epochs": config.trainer.epochs, "epoch_steps": epoch_steps}
    scheduler = build(config, "scheduler", optimizer, **length)
    ema = build_ema(parts.model, config.trainer.ema_decay)
    metrics, monitor = build_metrics(config)
    callbacks = {name: build(config, f"callbacks.{name}") for name in config.callbacks}
    for name, callback in callbacks.items():
        if not any(hasattr(callback, hook) for hook in HOOKS):
            raise BadInput(f"callbacks.{name}: has none of the methods {', '.join(HOOKS)}")
    chosen = (optimizer, scheduler, ema, parts.precision, loss, metrics, monitor, callbacks)
    return TrainState(parts.model, *chosen)


def dry_run(config: DictConfig, parts: Parts, loss: nn.Module, images: int) -> Summary:
    """Run a copy of the model in evaluation and in a training step of `images` blank images.

    Leaves the random states as they were. Raises BadInput for a model that does not fit the data,
    or a loss that is no scalar, or if the step fails.
    """
    kind, precision, model, (device, dtype, layout) = parts
    size, wanted = "×".join(map(str, kind.image_shape)), (kind.classes,)
    name, states, copied = describe(config, "model"), random_states(), copy.deepcopy(model)
    doing = f"does not fit images of {size} in {kind.classes} classes"
    remedy = "model=resnet takes any"
    try:
        with precision.autocast:
            summary = summarize(copied, kind.image_shape)
            check_logits(summary.total.output, wanted)
            doing = f"fails in a training step of {images} image{'s' * (images != 1)}"
            remedy = "batch_size says how many the last step of an epoch has"
            blank = torch.zeros(images, *kind.image_shape, dtype=dtype, device=device)
            set_train_mode(copied)
            logits = copied(blank.to(memory_format=layout))
            check_logits(getattr(logits, "shape", wanted[:0])[1:], wanted)
        labels = torch.zeros(images, dtype=torch.int64, device=device)
        losses = loss.train()(logits, labels)
        if losses.shape:
            name, doing = describe(config, "loss"), "does not give the sum over a batch, a scalar"
            remedy = "such as losses.sum()"
            raise ValueError(f"gives a tensor {list(losses.shape)}")
        twice = loss(logits.detach().repeat(2, 1), labels.repeat(2))
        if losses.item() != 0 and math.isclose(twice.item(), losses.item(), rel_tol=1e-3):
            name, doing = describe(config, "loss"), "does not give the sum over a batch"
            remedy = "such as losses.sum()"
            raise ValueError("twice the images give the same, so it is a mean")
        losses.backward()
    except MODEL_ERRORS as error:
        reason, nondeterministic, _ = first_line(error).partition(", but you set ")
        if nondeterministic:
            remedy = "trainer.deterministic=false allows it"
        elif not is_deliberate(error) and (place := find_place(error, caller=__file__)):
            reason += f", {place}"
        raise BadInput(f"{name}: {doing} ({reason}); {remedy}") from error
    finally:
        set_random_states(states)
    return summary


def check_logits(found: Sequence[int] | None, wanted: Sequence[int]) -> None:
    """Raises ValueError. The shapes are without the images; None: it was no tensor."""
    if tuple(found or ()) != wanted:
        gives = f"a tensor [n, {', '.join(map(str, found))}]" if found else "no such tensor"
        raise ValueError(f"gives {gives}, where logits [n, {wanted[0]}] are needed")


@functools.lru_cache(maxsize=1)
def load_dataset(data: str) -> Dataset:
    """The data set that this YAML of the group `data` names; read once for a serial sweep."""
    config = OmegaConf.create({"data": OmegaConf.create(data)})
    own = {f.name: config.data.pop(f.name, f.default) for f in fields(DataOptions)}
    options = DataOptions(**own)
    if options.folds is None:
        return build(config, "data")
    if "val_fraction" in config.data:
        config.data.val_fraction = 0
    dataset, seed = build(config, "data"), config.data.get("split_seed", 0)
    return take_fold(dataset, options.folds, options.fold, seed)


@functools.lru_cache(maxsize=1)
def prepare_splits(
    dataset: Dataset, limit: int | None, tensor_options: TensorOptions
) -> tuple[Split, Split]:
    """Training and validation images on the device; prepared once for a serial sweep.

    limit: images of each; None for all.
    """
    train, val = dataset.train[:limit], dataset.val[:limit]
    return dataset.prepare(train, *tensor_options), dataset.prepare(val, *tensor_options)


def build(
    config: DictConfig, group: str, *arguments: Any, skip: Sequence[str] = (), **more: Any
) -> Any:
    """Call the group's `_target_` with the group's other values and these arguments.

    group: its name, or the dotted key of an entry in a group that has several. skip: keys whose
    values are not passed.

    Values are passed as they are: a `_target_` in one of them is never called. Raises BadInput if
    the target does not exist or refuses its arguments.
    """
    options: Any = OmegaConf.to_container(OmegaConf.select(config, group), resolve=True)
    options = {key: value for key, value in options.items() if key not in skip}
    with raise_bad_input(describe(config, group)):
        target = find_target(options.pop(TARGET))
        return target(*arguments, **options, **more)


@contextmanager
def raise_bad_input(source: str) -> Iterator[None]:
    """Raise BadInput, which names the source, for what a wrong value in it can raise.

    An error that nobody raised on purpose may be a bug, and is shown with its place.
    """
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        place = "" if is_deliberate(error) else find_place(error, caller=__file__)
        raise BadInput(f"{source}: {error}{place and f' ({place})'}") from error


def describe(config: DictConfig, group: str) -> str:
    """What was chosen in this group, as it is typed: an option or, if the group has one, a name."""
    # A plain dict: a key that a DictConfig lacks keeps all callers' frames alive, with a model.
    options: Any = OmegaConf.to_container(OmegaConf.select(config, group), resolve=True)
    name, target = options.get("name"), options[TARGET]
    files = [file for file, found in read_options(group, target) if found.get(TARGET) == target]
    return f"{group}.name={name}" if name else f"{group}={' | '.join(files) or target}"

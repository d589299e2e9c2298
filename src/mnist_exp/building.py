"""From what a config names to objects."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mnist_exp import environment
from mnist_exp.data import Dataset, Split
from mnist_exp.errors import BadInput
from mnist_exp.models.layout import memory_format
from mnist_exp.precision import Precision

Form = tuple[torch.device, torch.dtype, torch.memory_format]  # of a model and its images


class Parts(NamedTuple):
    """What it takes to train a model, and to evaluate it."""

    dataset: Dataset
    precision: Precision
    model: nn.Module
    form: Form


def build_parts(config: DictConfig, device: torch.device) -> Parts:
    """Raises BadInput for a value that cannot be on this device, and what `build` raises."""
    for key in ("trainer.precision", "trainer.compile", "batch_size"):
        value = OmegaConf.select(config, key)
        if lack := environment.lacking(key, value, device):
            raise BadInput(f"{key}={value}: {lack}")
    dataset = load_dataset(OmegaConf.to_yaml(config.data, resolve=True))
    if config.trainer.patience is not None and not len(dataset.val):
        raise BadInput(
            f"trainer.patience={config.trainer.patience}: data.val_fraction=0 leaves no validation "
            "to lose it with"
        )
    precision = Precision(config.trainer.precision, device)
    torch.manual_seed(config.seed)
    shape, classes = dataset.image_shape, dataset.classes
    model: nn.Module = build(config, "model", input_shape=shape, classes=classes)
    layout = memory_format(config.trainer.channels_last, model)
    model.to(device, precision.dtype).to(memory_format=layout)
    return Parts(dataset, precision, model, (device, precision.dtype, layout))


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The model's exponential moving average (Polyak and Juditsky, 1992), if there is to be one.

    It moves by 1 - decay of the way at each step, batch norm's running statistics with it.
    """
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@functools.lru_cache(maxsize=1)
def load_dataset(data: str) -> Dataset:
    """What this YAML of the data group names; the jobs of a serial sweep read it once."""
    return build(OmegaConf.create({"data": OmegaConf.create(data)}), "data")


@functools.lru_cache(maxsize=1)
def prepared(dataset: Dataset, limit: int | None, form: Form) -> tuple[Split, Split]:
    """Training and validation images on the device, once for all jobs of a serial sweep.

    limit: images of each; None for all.
    """
    train, val = dataset.train[:limit], dataset.val[:limit]
    return dataset.prepare(train, *form), dataset.prepare(val, *form)


def build(config: DictConfig, group: str, *arguments: Any, **more: Any) -> Any:
    """What the group's `_target_` makes of its other values and of these arguments.

    Raises BadInput when it refuses them.
    """
    try:
        target = instantiate(config[group], _partial_=True, _convert_="all")
        return target(*arguments, **more)
    except (InstantiationException, TypeError, ValueError) as error:
        raise BadInput(f"{group}={config[group]._target_}: {error}") from error

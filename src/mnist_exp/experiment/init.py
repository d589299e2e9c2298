"""Start a new training from the weights of another one: `init` and `model.pretrained`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.find import find_init
from mnist_exp.experiment.load import refuse_initial_weights
from mnist_exp.experiment.resume import get_key
from mnist_exp.experiment.shell import show_path
from mnist_exp.experiment.targets import read_options
from mnist_exp.models.weights import load_fitting

log = logging.getLogger(__name__)

DIGEST = "init_sha256"  # the tag of a run that was started from other weights


def initialize(model: nn.Module, config: DictConfig) -> dict[str, str]:
    """Start from the weights that `config.init` names, as far as they fit; return a tag for them.

    Nothing reads them again: they are in the run's first checkpoint. In the config, a word such as
    "latest" becomes the path that it stands for now. Raises BadInput if they are not found or do
    not fit, CheckpointError if they cannot be read.
    """
    if config.get("init") is None:
        return {}
    config.init, path = find_init(config.init, config)
    weights = read_weights(path)
    try:
        log.info("init=%s: %s", show_path(path), load_fitting(model, weights))
    except ValueError as error:
        raise BadInput(f"init={show_path(path)}: {error}") from None
    return {DIGEST: compute_digest(weights)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The kept weights of a run's checkpoint, or a plain state_dict. Nothing in it can run code.

    Raises CheckpointError for anything but dense, finite tensors of real numbers, and BadInput for
    a run of which no epoch has ended.
    """
    content = checkpoint.read(path)
    with checkpoint.raise_misfits(path):
        if not isinstance(content, Mapping):
            raise ValueError("a run or a plain state_dict is needed")
        if "format" in content:  # a run's
            state = checkpoint.upgrade(content, path)["state"]
            refuse_initial_weights(path, state)
            content = state["progress"]["kept"]
        weights = dict(content)
        for name, tensor in weights.items():
            check_tensor(name, tensor)
    return weights


def check_tensor(name: object, tensor: object) -> None:
    """Raises ValueError for anything that cannot be a weight of a model."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is not a tensor: a run or a plain state_dict is needed")
    size = tensor.numel() * tensor.element_size()
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
    if not plain or tensor.is_complex() or tensor.untyped_storage().nbytes() < size:
        raise ValueError(f"{name} is not a dense tensor of real numbers")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")


def compute_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values. A file's digest would change when a run ends."""
    digest = sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def normalize_as_imagenet(config: DictConfig, overrides: Sequence[str]) -> None:
    """Normalize the images like those that `model.pretrained=true` was trained on.

    Values that were typed or are in a preset stay. The config then names "imagenet".
    """
    if not config.model.get("pretrained"):
        return
    given = {get_key(override) for override in overrides}
    for name, preset in read_options("experiment", "data"):
        if f"experiment={name}" in overrides:
            given |= {f"data.{key}" for key in preset.get("data") or {}}
    for key in ("mean", "std"):
        if key in config.data and f"data.{key}" not in given:
            config.data[key] = "imagenet"

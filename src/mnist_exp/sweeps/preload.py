"""What the jobs of a local sweep share: imported by the process that they are forked from.

A fork has all of it at once, and the memory exists once, as long as nobody writes to it. No
thread may start here, since a fork has the locks of a thread but not the thread: torch gets one
thread, and nothing touches a GPU.
"""

from __future__ import annotations

# ruff: noqa: E402
import gc

gc.disable()  # saves 0.7 s: the imports create a million objects, none of them garbage

import atexit
import os
from contextlib import suppress
from typing import Any

import torch
import torch._dynamo  # takes a second, at the first step of an optimizer
import torch.utils.flop_counter
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

import mnist_exp.sweeps.local  # noqa: F401
from mnist_exp.experiment.build import build_model, load_dataset, prepare_splits
from mnist_exp.experiment.environment import choose_device, code_digest, installed_versions
from mnist_exp.sweeps.forkserver import PRELOAD
from mnist_exp.sweeps.records import Sweep, make_adapter


def prepare(config: DictConfig) -> None:
    """Read what all jobs read; normalize the images if they train on the CPU."""
    code_digest(), installed_versions()  # read many files
    make_adapter(dict[str, Any]), make_adapter(Sweep)  # imports pydantic
    if config.tracking.figures:
        import mnist_exp.figures.draw  # noqa: F401
    device = choose_device(config.trainer.device)
    dataset = load_dataset(OmegaConf.to_yaml(config.data))
    if device.type == "cpu":
        parts = build_model(config, dataset.kind, device)
        batches = config.trainer.max_batches
        prepare_splits(dataset, batches and batches * config.batch_size, parts.tensor_options)


torch.set_num_threads(1)
Plugins.instance()  # which looks through all of Hydra's plugins
with suppress(Exception):  # the jobs say what is wrong
    config = OmegaConf.create(os.environ[PRELOAD])
    assert isinstance(config, DictConfig)
    prepare(config)
gc.freeze()  # a search for garbage would write to the shared memory
gc.enable()
atexit.register(os._exit, 0)  # Python would clean up for a second

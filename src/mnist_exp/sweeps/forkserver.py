"""The process that the jobs of a local sweep are forked from; see local.py and preload.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext, SpawnContext

from omegaconf import DictConfig, OmegaConf

PRELOAD = "MNIST_EXP_PRELOAD"  # in the environment: the YAML of a job


def get_context() -> ForkServerContext | SpawnContext:
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def start_forkserver(config: DictConfig) -> None:
    """Let it import torch, and read the data set of this job, while this process goes on."""
    context = get_context()
    if not isinstance(context, ForkServerContext):
        return
    from multiprocessing.forkserver import ensure_running

    ours = [str(key) for key in config if key not in ("hydra", "sweep")]
    os.environ[PRELOAD] = OmegaConf.to_yaml(OmegaConf.masked_copy(config, ours), resolve=True)
    context.set_forkserver_preload(["__main__", f"{__package__}.preload"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits
    ensure_running()
    signal.signal(signal.SIGINT, before)

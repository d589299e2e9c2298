"""Handwritten digit classification: a small but complete PyTorch experiment repository.

    from mnist_exp import compose, train, load    for a notebook; see api.py

The packages, each importing only those below it:

    cli           options and checks, before anything heavy is imported
    sweeps        many runs as one: jobs, leaderboard, search
    inference     a trained model on other images: evaluation, export, the page
    experiment    one run: build what the config names, train, checkpoint, resume, reproduce
    training      the loop and everything in it
    data          bytes to verified tensors
    models        plain modules with plain arguments
    tracking      MLflow and TensorBoard, in a process of their own
    figures       pictures from plain numbers
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_exp.api import compose, load, train

__all__ = ["__version__", "compose", "load", "train"]

# How long torch's threads spin while they wait for each other, which keeps other processes from a
# core: at most a millisecond. Read when torch is imported. A user's own values stay.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU's OpenMP, of torch on Linux
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's; milliseconds

__version__ = "0.5.0"


def __getattr__(name: str) -> object:
    """Import the functions of api.py when they are used: with torch that takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnist_exp import api

    return getattr(api, name)

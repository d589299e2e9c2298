"""The order and the random numbers of an epoch: pure functions of the seed and the epoch.

So a run that is resumed in the middle of an epoch continues with the same images.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mnist_exp.training.augmentation import DRAWS


def shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation, int64 [count]."""
    return torch.randperm(count, generator=make_generator(f"{seed}/{epoch}"))


def draw_uniform(count: int, seed: int, epoch: int) -> Tensor:
    """Uniform random numbers for the augmentation of an epoch, float32 [count, DRAWS]."""
    generator = make_generator(f"{seed}/{epoch}/augmentation")
    return torch.rand(count, DRAWS, generator=generator)


def make_generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(32))
